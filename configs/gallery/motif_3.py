"""Motif-3: latent attention with and without a window, differences of heads, 384 experts, four streams.

Hardware: accelerators with memory for 629 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show motif_3`); no loss is stated.
Run:      hybridlm train --config configs/gallery/motif_3.py --workdir runs/motif_3
"""

import math

from ml_collections import ConfigDict

from published import recipe

WIDTH, HEADS, SIGNAL, KV_HEADS, SIZE = 4096, 80, 64, 16, 128
Q_RANK, KV_RANK, SHARED = 1024, 512, 64
GATES = Q_RANK * SIGNAL * SIZE + WIDTH * SIGNAL  # of the outputs, and of what is subtracted
ATTENTION = (
    Q_RANK * (WIDTH + 1 + HEADS * (SIZE + SHARED))
    + WIDTH * (KV_RANK + SHARED)
    + KV_RANK * (1 + KV_HEADS * 2 * SIZE)
    + SIGNAL * SIZE * WIDTH
    + GATES
)

FACTS = dict(
    title="Motif-3",
    developer="Motif Technologies",
    released="2026-09",
    source="config.json of the published weights, revision 2ed2ed5c, as a port of the model states it",
    upstream="Motif-Technologies/Motif-3",
    context=262_144,
    total="314B",
    active="13.2B",
    cut=True,
    unsupported=[
        "differential attention: 16 groups of 4 heads and a fifth one, whose output is subtracted from"
        " theirs, and which share keys and values (here 80 heads)",
        "a gate on the output of attention",
        "the activation PolyNorm (here SiLU)",
        "norms with a scale of the streams, before their weights are computed",
        "the module that predicts a second token",
    ],
    surplus={
        "keys and values of each head, where 5 share theirs": 53
        * KV_RANK
        * (HEADS - KV_HEADS)
        * 2
        * SIZE,
        "outputs of the heads that are subtracted": 53 * (HEADS - SIGNAL) * SIZE * WIDTH,
    },
    left_out={
        "the gates of attention and of differences": 53 * GATES,
        "the scales of the streams' norms": 53 * 2 * 4 * WIDTH,
        "the coefficients of PolyNorm": 2 * 4 + 51 * 385 * 4,
        "the module that predicts a second token": 2 * WIDTH * WIDTH
        + ATTENTION
        + 3 * WIDTH * 12_288
        + 4
        + 4 * WIDTH,
    },
    unconfirmed=[
        "what the published figures count: they come out with the module that predicts a second token"
    ],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    sizes = dict(kind="mla", heads=HEADS, q_rank=Q_RANK, kv_rank=KV_RANK, norm_eps=1e-5)
    yarn = dict(factor=64.0, length=4096, attention=1.0)
    scale = (SIZE + SHARED) ** -0.5 * (0.1 * math.log(64.0) + 1) ** 2
    router = dict(
        scores="sigmoid", normalize=True, normalize_eps=1e-20, scale=2.0, choice_bias=True
    )
    return recipe(
        arg,
        width=WIDTH,
        depth=53,
        prefix="far near near+moe*2",
        pattern="far+moe near+moe*3",
        suffix="far+moe",
        mixers=dict(
            far=dict(sizes, rope=dict(theta=10_000.0, yarn=yarn), scale=scale),
            near=dict(sizes, rope=dict(theta=10_000.0), window=129),
        ),
        mlp=dict(kind="swiglu", hidden=12_288),
        feedforwards=dict(
            moe=dict(
                kind="moe", experts=384, top_k=8, hidden=1280, shared_hidden=1280, router=router
            )
        ),
        vocab_size=220_160,
        norm_eps=1e-5,
        tie_embeddings=False,
        streams=dict(count=4),
    )

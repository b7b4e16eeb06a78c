"""Llama 4 Maverick 17B-128E: chunks of 8,192 and full attention, 128 experts in every other layer.

Hardware: accelerators with memory for 801 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show llama_4_maverick`); no loss is stated.
Run:      hybridlm train --config configs/gallery/llama_4_maverick.py --workdir runs/llama_4_maverick
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Llama 4 Maverick",
    developer="Meta",
    released="2025-04",
    source="Llama 4 model card, 2025-04; NoPE layers: arXiv 2501.18795",
    upstream="meta-llama/Llama-4-Maverick-17B-128E",
    context=1_048_576,
    total="402B",
    active="17B",
    outside={"the vision encoder and its projections": 871_000_000},
    unconfirmed=["the size of the vision encoder, which is rounded"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    router = dict(scores="sigmoid")
    moe = dict(
        kind="moe",
        experts=128,
        top_k=1,
        hidden=8192,
        shared_hidden=8192,
        weigh="input",
        router=router,
    )
    temperature = dict(scale=8192.0, strength=0.1, steps=True)
    return recipe(
        arg,
        width=5120,
        depth=48,
        pattern="chunked chunked+moe chunked nope+moe",
        mixers=dict(
            chunked=attention(40, 8, 128, chunk=8192, rope=dict(theta=500_000.0), qk_norm=False),
            nope=attention(40, 8, 128, rope=None, temperature=temperature),
        ),
        mlp=dict(kind="swiglu", hidden=16384),
        feedforwards=dict(moe=moe),
        vocab_size=202_048,
        norm_eps=1e-5,
        tie_embeddings=False,
    )

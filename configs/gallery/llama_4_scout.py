"""Llama 4 Scout 17B-16E: three layers with chunks of 8,192 to one without positions, 16 experts.

Hardware: accelerators with memory for 217 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show llama_4_scout`); no loss is stated.
Run:      hybridlm train --config configs/gallery/llama_4_scout.py --workdir runs/llama_4_scout
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Llama 4 Scout",
    developer="Meta",
    released="2025-04",
    source="Llama 4 model card, 2025-04; NoPE layers: arXiv 2501.18795",
    upstream="meta-llama/Llama-4-Scout-17B-16E",
    context=10_485_760,
    total="109B",
    active="17B",
    outside={"the vision encoder and its projections": 871_000_000},
    unconfirmed=["the size of the vision encoder, which is rounded"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    router = dict(scores="sigmoid")
    moe = dict(
        kind="moe",
        experts=16,
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
        pattern="chunked+moe*3 nope+moe",
        mixers=dict(
            chunked=attention(40, 8, 128, chunk=8192, rope=dict(theta=500_000.0), qk_norm="l2"),
            nope=attention(40, 8, 128, rope=None, temperature=temperature),
        ),
        mlp=None,
        feedforwards=dict(moe=moe),
        vocab_size=202_048,
        norm_eps=1e-5,
        tie_embeddings=False,
    )

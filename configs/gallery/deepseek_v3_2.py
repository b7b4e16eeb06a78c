"""DeepSeek-V3.2 (arXiv 2512.02556): DeepSeek-V3 with sparse attention by an indexer.

Hardware: accelerators with memory for 1.3 TB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show deepseek_v3_2`); no loss is stated.
Run:      hybridlm train --config configs/gallery/deepseek_v3_2.py --workdir runs/deepseek_v3_2
"""

import math

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="DeepSeek-V3.2",
    developer="DeepSeek",
    released="2025-12",
    source="arXiv 2512.02556",
    upstream="deepseek-ai/DeepSeek-V3.2",
    context=163_840,
    total="671B",
    active="37B",
    active_excludes="embedding",
    cut=True,
    unsupported=[
        "the module that predicts a second token, which the 671B leave out",
    ],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    yarn = dict(factor=40.0, length=4096, attention=1.0)
    dsa = dict(
        kind="dsa",
        index_heads=64,
        heads=128,
        q_rank=1536,
        rope=dict(theta=10_000.0, yarn=yarn, interleaved=True),
        scale=192**-0.5 * (0.1 * math.log(40.0) + 1) ** 2,
    )
    router = dict(
        scores="sigmoid",
        normalize=True,
        normalize_eps=1e-20,
        scale=2.5,
        choice_bias=True,
        groups=8,
        top_groups=4,
    )
    moe = dict(kind="moe", experts=256, top_k=8, hidden=2048, shared_hidden=2048, router=router)
    return recipe(
        arg,
        width=7168,
        depth=61,
        prefix="dsa*3",
        pattern="dsa+moe",
        mixers=dict(dsa=dsa),
        mlp=dict(kind="swiglu", hidden=18432),
        feedforwards=dict(moe=moe),
        vocab_size=129_280,
        tie_embeddings=False,
    )

"""Qwen3-30B-A3B (arXiv 2505.09388): grouped-query attention and 8 of 128 experts.

Hardware: accelerators with memory for 61 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show qwen3_30b_a3b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/qwen3_30b_a3b.py --workdir runs/qwen3_30b_a3b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Qwen3-30B-A3B",
    developer="Alibaba",
    released="2025-05",
    source="arXiv 2505.09388",
    upstream="Qwen/Qwen3-30B-A3B",
    context=32_768,
    total="30.5B",
    active="3.3B",
    cut=True,
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(32, 4, 128, rope=dict(theta=1_000_000.0), qk_norm=True)
    return recipe(
        arg,
        width=2048,
        depth=48,
        pattern="full",
        mixers=dict(full=full),
        mlp=dict(kind="moe", experts=128, top_k=8, hidden=768, router=dict(normalize=True)),
        vocab_size=151_936,
        tie_embeddings=False,
    )

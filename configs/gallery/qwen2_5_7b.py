"""Qwen2.5-7B (arXiv 2412.15115): a dense transformer with biases on queries, keys and values.

Hardware: accelerators with memory for 15 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show qwen2_5_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/qwen2_5_7b.py --workdir runs/qwen2_5_7b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Qwen2.5-7B",
    developer="Alibaba",
    released="2024-09",
    source="arXiv 2412.15115",
    upstream="Qwen/Qwen2.5-7B",
    context=131_072,
    total="7.61B",
    cut=True,
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(28, 4, 128, rope=dict(theta=1_000_000.0), bias="qkv")
    return recipe(
        arg,
        width=3584,
        depth=28,
        pattern="full",
        mixers=dict(full=full),
        mlp=dict(kind="swiglu", hidden=18944),
        vocab_size=152_064,
        tie_embeddings=False,
    )

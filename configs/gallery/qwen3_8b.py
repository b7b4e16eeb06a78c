"""Qwen3-8B (arXiv 2505.09388): a dense transformer with norms on queries and keys.

Hardware: accelerators with memory for 17 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show qwen3_8b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/qwen3_8b.py --workdir runs/qwen3_8b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Qwen3-8B",
    developer="Alibaba",
    released="2025-05",
    source="arXiv 2505.09388",
    upstream="Qwen/Qwen3-8B",
    context=32_768,
    total="8.2B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(32, 8, 128, rope=dict(theta=1_000_000.0), qk_norm=True)
    return recipe(
        arg,
        width=4096,
        depth=36,
        pattern="full",
        mixers=dict(full=full),
        mlp=dict(kind="swiglu", hidden=12288),
        vocab_size=151_936,
        tie_embeddings=False,
    )

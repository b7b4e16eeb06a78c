"""Llama 3 8B (arXiv 2407.21783): a dense transformer with grouped-query attention.

Hardware: accelerators with memory for 16 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show llama_3_8b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/llama_3_8b.py --workdir runs/llama_3_8b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Llama 3 8B",
    developer="Meta",
    released="2024-04",
    source="arXiv 2407.21783",
    upstream="meta-llama/Meta-Llama-3-8B",
    context=8192,
    total="8.03B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(32, 8, 128, rope=dict(theta=500_000.0))
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="full",
        mixers=dict(full=full),
        mlp=dict(kind="swiglu", hidden=14336),
        vocab_size=128_256,
        norm_eps=1e-5,
        tie_embeddings=False,
    )

"""Mixtral 8x7B (arXiv 2401.04088): grouped-query attention and two of eight experts.

Hardware: accelerators with memory for 94 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show mixtral_8x7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/mixtral_8x7b.py --workdir runs/mixtral_8x7b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Mixtral 8x7B",
    developer="Mistral AI",
    released="2023-12",
    source="arXiv 2401.04088",
    upstream="mistralai/Mixtral-8x7B-v0.1",
    context=32_768,
    total="46.7B",
    active="12.9B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(32, 8, 128, rope=dict(theta=1_000_000.0))
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="full",
        mixers=dict(full=full),
        mlp=dict(kind="moe", experts=8, top_k=2, hidden=14336, router=dict(normalize=True)),
        vocab_size=32_000,
        norm_eps=1e-5,
        tie_embeddings=False,
    )

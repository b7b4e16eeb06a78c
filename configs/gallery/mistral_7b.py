"""Mistral 7B v0.1 (arXiv 2310.06825): grouped-query attention within windows of 4,096.

Hardware: accelerators with memory for 15 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show mistral_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/mistral_7b.py --workdir runs/mistral_7b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Mistral 7B",
    developer="Mistral AI",
    released="2023-09",
    source="arXiv 2310.06825",
    upstream="mistralai/Mistral-7B-v0.1",
    context=8192,
    total="7.24B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    local = attention(32, 8, 128, window=4096)
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="local",
        mixers=dict(local=local),
        mlp=dict(kind="swiglu", hidden=14336),
        vocab_size=32_000,
        norm_eps=1e-5,
        tie_embeddings=False,
    )

"""Llama 2 7B (arXiv 2307.09288): a dense transformer with multi-head attention.

Hardware: accelerators with memory for 13 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show llama_2_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/llama_2_7b.py --workdir runs/llama_2_7b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Llama 2 7B",
    developer="Meta",
    released="2023-07",
    source="arXiv 2307.09288",
    upstream="meta-llama/Llama-2-7b-hf",
    context=4096,
    total="6.74B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="full",
        mixers=dict(full=attention(32, 32, 128)),
        mlp=dict(kind="swiglu", hidden=11008),
        vocab_size=32_000,
        norm_eps=1e-5,
        tie_embeddings=False,
    )

"""Gemma 2 9B (arXiv 2408.00118): windows of 4,096 and full attention in turn, with soft caps.

Hardware: accelerators with memory for 19 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show gemma_2_9b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/gemma_2_9b.py --workdir runs/gemma_2_9b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Gemma 2 9B",
    developer="Google",
    released="2024-06",
    source="arXiv 2408.00118",
    upstream="google/gemma-2-9b",
    context=8192,
    total="9.24B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(soft_cap=50.0, scale=256**-0.5)
    return recipe(
        arg,
        width=3584,
        depth=42,
        pattern="local full",
        mixers=dict(
            local=attention(16, 8, 256, window=4096, **common), full=attention(16, 8, 256, **common)
        ),
        mlp=dict(kind="geglu", hidden=14336),
        vocab_size=256_000,
        block="sandwich",
        norm="rmsnorm_unit_offset",
        embedding_scale=3584**0.5,
        logit_soft_cap=30.0,
    )

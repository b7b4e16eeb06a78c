"""Gemma 3 27B (arXiv 2503.19786): five layers with a window of 1,024 to one of full attention.

Hardware: accelerators with memory for 54 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show gemma_3_27b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/gemma_3_27b.py --workdir runs/gemma_3_27b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Gemma 3 27B",
    developer="Google",
    released="2025-03",
    source="arXiv 2503.19786",
    upstream="google/gemma-3-27b-pt",
    context=131_072,
    total="27.0B",
    unsupported=["the vision encoder"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(qk_norm=True, scale=168**-0.5)
    local = attention(32, 16, 128, window=1024, rope=dict(theta=10_000.0), **common)
    far = dict(theta=1_000_000.0, linear=dict(factor=8.0))
    return recipe(
        arg,
        width=5376,
        depth=62,
        pattern="local*5 full",
        mixers=dict(local=local, full=attention(32, 16, 128, rope=far, **common)),
        mlp=dict(kind="geglu", hidden=21504),
        vocab_size=262_208,
        block="sandwich",
        norm="rmsnorm_unit_offset",
        embedding_scale=5376**0.5,
    )

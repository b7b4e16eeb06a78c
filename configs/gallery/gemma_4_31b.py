"""Gemma 4 31B: five layers with a window of 1,024 to one of full attention with shared keys and values.

Hardware: accelerators with memory for 61 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show gemma_4_31b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/gemma_4_31b.py --workdir runs/gemma_4_31b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Gemma 4 31B",
    developer="Google",
    released="2026-04",
    source="Gemma 4 model card, 2026-04",
    upstream="google/gemma-4-31B",
    context=262_144,
    total="30.7B",
    unsupported=["the vision encoder, which the 30.7B leave out"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(qk_norm=True, v_norm=True, scale=1.0)
    local = attention(32, 16, 256, window=1024, rope=dict(theta=10_000.0), **common)
    far = dict(theta=1_000_000.0, kept=dict(fraction=0.25))
    return recipe(
        arg,
        width=5376,
        depth=60,
        pattern="local*5 full",
        mixers=dict(local=local, full=attention(32, 4, 512, rope=far, values="keys", **common)),
        mlp=dict(kind="geglu", hidden=21504),
        vocab_size=262_144,
        block="scaled_sandwich",
        embedding_scale=5376**0.5,
        logit_soft_cap=30.0,
    )

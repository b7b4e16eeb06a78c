"""OLMo 3 7B (arXiv 2512.13961): three layers with a window of 4,096 to one of full attention.

Hardware: accelerators with memory for 15 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show olmo_3_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/olmo_3_7b.py --workdir runs/olmo_3_7b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="OLMo 3 7B",
    developer="Ai2",
    released="2025-11",
    source="arXiv 2512.13961",
    upstream="allenai/Olmo-3-1025-7B",
    context=65_536,
    total="7B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(qk_norm="whole")
    far = dict(theta=500_000.0, yarn=dict(factor=8.0, length=8192))
    local = attention(32, 32, 128, window=4096, rope=dict(theta=500_000.0), **common)
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="local*3 full",
        mixers=dict(local=local, full=attention(32, 32, 128, rope=far, **common)),
        mlp=dict(kind="swiglu", hidden=11008),
        vocab_size=100_278,
        block="postnorm",
        tie_embeddings=False,
    )

"""OLMo 2 7B (arXiv 2501.00656): a dense transformer with norms after each half of a layer.

Hardware: accelerators with memory for 15 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show olmo_2_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/olmo_2_7b.py --workdir runs/olmo_2_7b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="OLMo 2 7B",
    developer="Ai2",
    released="2024-11",
    source="arXiv 2501.00656",
    upstream="allenai/OLMo-2-1124-7B",
    context=4096,
    total="7B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(32, 32, 128, rope=dict(theta=500_000.0), qk_norm="whole")
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="full",
        mixers=dict(full=full),
        mlp=dict(kind="swiglu", hidden=11008),
        vocab_size=100_352,
        block="postnorm",
        tie_embeddings=False,
    )

"""SmolLM3-3B: full attention in all layers, and every fourth layer without positions.

Hardware: accelerators with memory for 6 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show smollm3_3b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/smollm3_3b.py --workdir runs/smollm3_3b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="SmolLM3-3B",
    developer="Hugging Face",
    released="2025-07",
    source="SmolLM3 blog post, 2025-07; NoPE layers: arXiv 2501.18795",
    upstream="HuggingFaceTB/SmolLM3-3B",
    context=65_536,
    total="3.08B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=2048,
        depth=36,
        pattern="rope*3 nope",
        mixers=dict(
            rope=attention(16, 4, 128, rope=dict(theta=5_000_000.0)),
            nope=attention(16, 4, 128, rope=None),
        ),
        mlp=dict(kind="swiglu", hidden=11008),
        vocab_size=128_256,
    )

"""Bamba 9B: Mamba-2, and three layers of attention with RoPE on half of each head.

Hardware: accelerators with memory for 20 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show bamba_9b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/bamba_9b.py --workdir runs/bamba_9b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Bamba 9B",
    developer="IBM, Princeton, CMU and UIUC",
    released="2024-12",
    source="Bamba blog post, 2024-12",
    upstream="ibm-ai-platform/Bamba-9B-v1",
    context=4096,
    total="9.78B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(32, 8, 128, rope=dict(theta=10_000.0, fraction=0.5))
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="mamba*9 full mamba*8 full mamba*8 full mamba*4",
        mixers=dict(
            mamba=dict(kind="mamba2", heads=128, head_dim=64, state_dim=128, groups=1), full=full
        ),
        mlp=dict(kind="swiglu", hidden=14336),
        vocab_size=128_256,
        norm_eps=1e-5,
        tie_embeddings=False,
    )

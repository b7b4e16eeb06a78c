"""LFM2 1.2B (arXiv 2511.23404): ten gated short convolutions and six layers of attention.

Hardware: accelerators with memory for 2 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show lfm2_1_2b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/lfm2_1_2b.py --workdir runs/lfm2_1_2b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="LFM2 1.2B, LFM2.5 1.2B",
    developer="Liquid AI",
    released="2025-07",
    source="arXiv 2511.23404; LFM2.5, 2026-01, has the same sizes",
    upstream="LiquidAI/LFM2-1.2B",
    context=32_768,
    total="1.17B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(32, 8, 64, rope=dict(theta=1_000_000.0), qk_norm=True)
    return recipe(
        arg,
        width=2048,
        depth=16,
        pattern="conv*2 full conv*2 full conv*2 full conv full conv full conv full conv",
        mixers=dict(conv=dict(kind="short_conv", conv_width=3), full=full),
        mlp=dict(kind="swiglu", hidden=8192),
        vocab_size=65_536,
        norm_eps=1e-5,
    )

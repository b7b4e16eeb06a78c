"""LFM2-8B-A1B (arXiv 2511.23404): gated short convolutions, six layers of attention, 32 experts.

Hardware: accelerators with memory for 17 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show lfm2_8b_a1b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/lfm2_8b_a1b.py --workdir runs/lfm2_8b_a1b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="LFM2-8B-A1B",
    developer="Liquid AI",
    released="2025-10",
    source="arXiv 2511.23404",
    upstream="LiquidAI/LFM2-8B-A1B",
    context=32_768,
    total="8.3B",
    active="1.5B",
    cut=True,
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(32, 8, 64, rope=dict(theta=1_000_000.0), qk_norm=True)
    router = dict(scores="sigmoid", normalize=True, normalize_eps=1e-6, choice_bias=True)
    moe = dict(kind="moe", experts=32, top_k=4, hidden=1792, router=router)
    return recipe(
        arg,
        width=2048,
        depth=24,
        prefix="conv*2",
        pattern=" ".join(["full+moe conv+moe*3"] * 4 + ["full+moe conv+moe*2"] * 2),
        mixers=dict(conv=dict(kind="short_conv", conv_width=3), full=full),
        mlp=dict(kind="swiglu", hidden=7168),
        feedforwards=dict(moe=moe),
        vocab_size=65_536,
        norm_eps=1e-5,
    )

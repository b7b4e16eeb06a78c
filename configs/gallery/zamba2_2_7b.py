"""Zamba2 2.7B (arXiv 2411.15242): Mamba-2, and two attention blocks that nine layers share.

Hardware: accelerators with memory for 5 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show zamba2_2_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/zamba2_2_7b.py --workdir runs/zamba2_2_7b
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="Zamba2 2.7B",
    developer="Zyphra",
    released="2024-07",
    source="arXiv 2411.15242",
    upstream="Zyphra/Zamba2-2.7B",
    context=4096,
    total="2.7B",
    unsupported=[
        "two blocks of attention and feed-forward that nine layers share, each with an adapter and a"
        " projection of its own",
    ],
    left_out={
        "the two shared blocks": 2
        * (3 * 5120 * 5120 + 2560 * 5120 + 20480 * 2560 + 2560 * 10240 + 5120 + 2560),
        "the nine adapters and projections": 9 * (2560 * 2560 + 128 * 2560 + 20480 * 128),
    },
    left_out_kv={"nine uses of the shared blocks, 32 heads of 160": 9 * 2 * 32 * 160 * 2},
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=2560,
        depth=54,
        pattern="mamba",
        mixers=dict(mamba=dict(kind="mamba2", heads=80, head_dim=64, state_dim=64, groups=1)),
        mlp=None,
        vocab_size=32_000,
        norm_eps=1e-5,
    )

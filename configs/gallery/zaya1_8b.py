"""ZAYA1 8B (arXiv 2511.17127): attention whose queries and keys pass convolutions, and 16 experts.

Hardware: accelerators with memory for 18 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show zaya1_8b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/zaya1_8b.py --workdir runs/zaya1_8b
"""

from ml_collections import ConfigDict

from published import attention, recipe

CHANNELS = 10 * 128  # of queries and keys

FACTS = dict(
    title="ZAYA1 8B",
    developer="Zyphra",
    released="2025-11",
    source="arXiv 2511.17127; compressed convolutional attention: arXiv 2510.04476",
    upstream="Zyphra/ZAYA1-8B",
    context=131_072,
    total="8.3B",
    total_excludes="embedding",
    unsupported=[
        "two convolutions of queries and keys, their means added to both, and temperatures of the heads",
        "half of the values from the token before",
        "a router of three layers that reads the router of the layer before, and an expert without work",
        "scales and biases of the residual stream",
    ],
    left_out={
        "the convolutions and temperatures": 40 * (CHANNELS * (2 + 1 + 2 * 128 + 1) + 2),
        "the routers, less linear ones": 40
        * (2048 * 256 + 256 + 256 + 2 * (256 * 256 + 256) + 256 * 17 + 1 - 2048 * 16)
        + 39 * 256,
        "the scales and biases": 40 * 2 * 4 * 2048 + 2 * 2048,
    },
    unconfirmed=["how the published 760M active parameters are counted"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(8, 2, 128, rope=dict(theta=5_000_000.0, fraction=0.5), qk_norm="l2")
    return recipe(
        arg,
        width=2048,
        depth=40,
        pattern="full",
        mixers=dict(full=full),
        mlp=dict(kind="moe", experts=16, top_k=1, hidden=2048, router=dict(choice_bias=True)),
        vocab_size=262_272,
        norm_eps=1e-5,
    )

"""Tiny Aya (arXiv 2603.11510): three layers with a window of 4,096 to one without positions.

Hardware: accelerators with memory for 7 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show tiny_aya_3b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/tiny_aya_3b.py --workdir runs/tiny_aya_3b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Tiny Aya 3.35B",
    developer="Cohere",
    released="2026-02",
    source="arXiv 2603.11510",
    upstream="CohereLabs/tiny-aya-base",
    context=8192,
    total="3.35B",
    unconfirmed=["the base of RoPE and the factor on the logits"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=2048,
        depth=36,
        pattern="local*3 full",
        mixers=dict(
            local=attention(16, 4, 128, window=4096, rope=dict(theta=50_000.0, interleaved=True)),
            full=attention(16, 4, 128, rope=None),
        ),
        mlp=dict(kind="swiglu", hidden=11008),
        vocab_size=262_144,
        block="parallel",
        norm="layernorm_no_bias",
        norm_eps=1e-5,
        logit_scale=1.0,
    )

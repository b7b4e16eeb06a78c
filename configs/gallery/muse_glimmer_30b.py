"""Muse Glimmer 30B: three layers with a window of 2,048 to one of full attention without positions.

Hardware: accelerators with memory for 60 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show muse_glimmer_30b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/muse_glimmer_30b.py --workdir runs/muse_glimmer_30b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Muse Glimmer 30B",
    developer="Meta",
    released="2026-08",
    source="the class muse_glimmer of transformers 5.23, whose default sizes are this model's",
    upstream="meta-models/Muse-Glimmer-30B",
    context=131_072,
    total="30B",
    unsupported=["a norm without a scale of the embedding's output"],
    outside={"the vision encoder and its projections": 1_921_572_352},
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(qk_norm="l2", output_gate=True, scale=3.87 * 128**-0.5)
    return recipe(
        arg,
        width=6656,
        depth=52,
        pattern="local*3 full",
        mixers=dict(
            local=attention(32, 2, 128, window=2048, rope=dict(theta=10_000.0), **common),
            full=attention(32, 2, 128, rope=None, **common),
        ),
        mlp=dict(kind="swiglu", hidden=19968),
        vocab_size=202_048,
        block="sandwich",
        norm="rmsnorm_unit_offset",
        norm_eps=1e-5,
        tie_embeddings=False,
        logit_scale=0.19611613513818404,
        logit_soft_cap=20.0,
    )

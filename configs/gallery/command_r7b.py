"""Command R7B: three layers with a window of 4,096 to one without positions, halves in parallel.

Hardware: accelerators with memory for 16 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show command_r7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/command_r7b.py --workdir runs/command_r7b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Command R7B",
    developer="Cohere",
    released="2024-12",
    source="Command R7B announcement, 2024-12; NoPE layers: arXiv 2501.18795",
    upstream="CohereLabs/c4ai-command-r7b-12-2024",
    context=131_072,
    total="8.03B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="local*3 full",
        mixers=dict(
            local=attention(32, 8, 128, window=4096, rope=dict(theta=50_000.0, interleaved=True)),
            full=attention(32, 8, 128, rope=None),
        ),
        mlp=dict(kind="swiglu", hidden=14336),
        vocab_size=256_000,
        block="parallel",
        norm="layernorm_no_bias",
        norm_eps=1e-5,
        logit_scale=0.25,
    )

"""Command A+: windows of 4,096 with RoPE and full attention without, beside 128 experts.

Hardware: accelerators with memory for 437 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show command_a_plus`); no loss is stated.
Run:      hybridlm train --config configs/gallery/command_a_plus.py --workdir runs/command_a_plus
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Command A+",
    developer="Cohere",
    released="2026-05",
    source="model card of Command A+, 2026-05; NoPE layers: arXiv 2501.18795",
    upstream="CohereLabs/command-a-plus-05-2026-bf16",
    context=200_000,
    total="218B",
    active="25B",
    unsupported=[
        "the mean, and not the sum, of the routed experts' output and the shared experts'",
        "the vision encoder, which the 218B leave out",
    ],
    unconfirmed=["the base of RoPE", "the window", "the scale of the logits"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    rope = dict(theta=50_000.0, interleaved=True)
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="local*3 full",
        mixers=dict(
            local=attention(128, 8, 128, window=4096, rope=rope),
            full=attention(128, 8, 128, rope=None),
        ),
        mlp=dict(
            kind="moe",
            experts=128,
            top_k=8,
            hidden=4096,
            shared_hidden=4 * 4096,
            router=dict(scores="sigmoid", normalize=True),
        ),
        vocab_size=262_144,
        block="parallel",
        norm="layernorm_no_bias",
        norm_eps=1e-5,
        logit_scale=0.0625,
    )

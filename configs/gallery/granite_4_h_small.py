"""Granite 4.0 H-Small: nine layers of Mamba-2 to one of attention without positions, and experts.

Hardware: accelerators with memory for 64 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show granite_4_h_small`); no loss is stated.
Run:      hybridlm train --config configs/gallery/granite_4_h_small.py --workdir runs/granite_4_h_small
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Granite 4.0 H-Small",
    developer="IBM",
    released="2025-10",
    source="Granite 4.0 announcement, 2025-10",
    upstream="ibm-granite/granite-4.0-h-small",
    context=131_072,
    total="32B",
    active="9B",
    unconfirmed=["the constant multipliers of embedding, attention, residuals and logits"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(32, 8, 128, rope=None, scale=1 / 128)
    mamba = dict(kind="mamba2", heads=128, head_dim=64, state_dim=128, groups=1)
    return recipe(
        arg,
        width=4096,
        depth=40,
        prefix="mamba*5 full",
        pattern="mamba*9 full",
        suffix="mamba*4",
        mixers=dict(mamba=mamba, full=full),
        mlp=dict(
            kind="moe",
            experts=72,
            top_k=10,
            hidden=768,
            shared_hidden=1536,
            router=dict(scores="softmax_chosen"),
        ),
        vocab_size=100_352,
        norm_eps=1e-5,
        embedding_scale=12.0,
        residual_scale=0.22,
        logit_scale=1 / 16,
    )

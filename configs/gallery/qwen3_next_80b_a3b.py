"""Qwen3-Next-80B-A3B: three layers of Gated DeltaNet to one of gated attention, 512 experts.

Hardware: accelerators with memory for 160 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show qwen3_next_80b_a3b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/qwen3_next_80b_a3b.py --workdir runs/qwen3_next_80b_a3b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Qwen3-Next-80B-A3B",
    developer="Alibaba",
    released="2025-09",
    source="Qwen3-Next blog post, 2025-09; Gated DeltaNet: arXiv 2412.06464",
    upstream="Qwen/Qwen3-Next-80B-A3B-Instruct",
    context=262_144,
    total="80B",
    active="3B",
    active_excludes="embedding and head",
    unsupported=["the module that predicts further tokens"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(
        16,
        2,
        256,
        rope=dict(theta=10_000_000.0, fraction=0.25),
        qk_norm=True,
        output_gate=True,
    )
    gdn = dict(kind="gdn", heads=16, value_heads=32, head_dim=128, value_dim=128)
    return recipe(
        arg,
        width=2048,
        depth=48,
        pattern="gdn*3 full",
        mixers=dict(gdn=gdn, full=full),
        mlp=dict(
            kind="moe",
            experts=512,
            top_k=10,
            hidden=512,
            shared_hidden=512,
            shared_gate=True,
            router=dict(normalize=True),
        ),
        vocab_size=151_936,
        norm="rmsnorm_unit_offset",
        tie_embeddings=False,
    )

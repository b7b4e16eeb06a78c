"""Qwen3.5-35B-A3B: three layers of Gated DeltaNet to one of gated attention, and experts.

Hardware: accelerators with memory for 69 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show qwen3_5_35b_a3b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/qwen3_5_35b_a3b.py --workdir runs/qwen3_5_35b_a3b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Qwen3.5-35B-A3B, Qwen3.6-35B-A3B",
    developer="Alibaba",
    released="2026-02",
    source="Qwen3.5 blog post, 2026-02; Gated DeltaNet: arXiv 2412.06464",
    upstream="Qwen/Qwen3.5-35B-A3B",
    context=262_144,
    total="35B",
    active="3B",
    unsupported=["the module that predicts further tokens"],
    outside={"the vision encoder": 446_571_248},
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(
        16, 2, 256, rope=dict(theta=10_000_000.0, fraction=0.25), qk_norm=True, output_gate=True
    )
    gdn = dict(kind="gdn", heads=16, value_heads=32, head_dim=128, value_dim=128)
    return recipe(
        arg,
        width=2048,
        depth=40,
        pattern="gdn*3 full",
        mixers=dict(gdn=gdn, full=full),
        mlp=dict(
            kind="moe",
            experts=256,
            top_k=8,
            hidden=512,
            shared_hidden=512,
            shared_gate=True,
            router=dict(normalize=True),
        ),
        vocab_size=248_320,
        norm="rmsnorm_unit_offset",
        tie_embeddings=False,
    )

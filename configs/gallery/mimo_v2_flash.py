"""MiMo-V2-Flash (arXiv 2601.02780): five layers with a window of 128 earlier keys to one of full attention.

Hardware: accelerators with memory for 618 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show mimo_v2_flash`); no loss is stated.
Run:      hybridlm train --config configs/gallery/mimo_v2_flash.py --workdir runs/mimo_v2_flash
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="MiMo-V2-Flash",
    developer="Xiaomi",
    released="2025-12",
    source="arXiv 2601.02780",
    upstream="XiaomiMiMo/MiMo-V2-Flash",
    context=262_144,
    total="309B",
    active="15B",
    unsupported=["three modules that predict further tokens"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(value_dim=128, value_scale=0.707)
    local = attention(
        64,
        8,
        192,
        window=129,
        rope=dict(theta=10_000.0, fraction=0.334),
        sinks=True,
        **common,
    )
    full = attention(64, 4, 192, rope=dict(theta=5_000_000.0, fraction=0.334), **common)
    router = dict(scores="sigmoid", normalize=True, normalize_eps=1e-20, choice_bias=True)
    moe = dict(kind="moe", experts=256, top_k=8, hidden=2048, router=router)
    return recipe(
        arg,
        width=4096,
        depth=48,
        prefix="full local+moe*4 full+moe",
        pattern="local+moe*5 full+moe",
        mixers=dict(local=local, full=full),
        mlp=dict(kind="swiglu", hidden=16384),
        feedforwards=dict(moe=moe),
        vocab_size=152_576,
        norm_eps=1e-5,
        tie_embeddings=False,
    )

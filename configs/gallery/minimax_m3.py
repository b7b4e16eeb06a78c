"""MiniMax-M3: attention to chosen blocks of 128 keys, and 128 experts.

Hardware: accelerators with memory for 854 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show minimax_m3`); no loss is stated.
Run:      hybridlm train --config configs/gallery/minimax_m3.py --workdir runs/minimax_m3
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="MiniMax-M3",
    developer="MiniMax",
    released="2026-06",
    source="the class minimax_m3_vl of transformers 5.24, whose default sizes are this model's",
    upstream="MiniMaxAI/MiniMax-M3",
    context=524_288,
    unsupported=[
        "an indexer that chooses blocks for each key/value head (here each query head chooses blocks by"
        " their mean keys)",
        "norms of queries and keys in the layers with chosen blocks",
        "the experts' gate in the dense layers and the shared expert",
        "the vision encoder",
    ],
    left_out={
        "the indexers": 57 * (6144 * 5 * 128 + 2 * 128),
        "the norms of queries and keys": 57 * 2 * 128,
    },
    outside={"the vision encoder": 865_567_232},
    unconfirmed=["the total, which other projects state as 428B", "the month of publication"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    rope = dict(theta=5_000_000.0, fraction=0.5)
    sparse = dict(kind="moba", heads=64, kv_heads=4, head_dim=128, block=128, top_k=17, rope=rope)
    router = dict(scores="sigmoid", normalize=True, scale=2.0, choice_bias=True)
    moe = dict(
        kind="moe",
        experts=128,
        top_k=4,
        hidden=3072,
        shared_hidden=3072,
        clamp=7.0,
        gate_slope=1.702,
        up_offset=1.0,
        router=router,
    )
    return recipe(
        arg,
        width=6144,
        depth=60,
        prefix="full*3",
        pattern="sparse+moe",
        mixers=dict(full=attention(64, 4, 128, rope=rope, qk_norm="unit_offset"), sparse=sparse),
        mlp=dict(kind="swiglu", hidden=12288),
        feedforwards=dict(moe=moe),
        vocab_size=200_064,
        norm="rmsnorm_unit_offset",
        tie_embeddings=False,
    )

"""Qwen3.8-Flash-Next: three layers of Gated DeltaNet to one of sparse attention, n-gram embeddings.

Hardware: accelerators with memory for 353 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show qwen3_8_flash_next`); no loss is stated.
Run:      hybridlm train --config configs/gallery/qwen3_8_flash_next.py --workdir runs/qwen3_8_flash_next
"""

from ml_collections import ConfigDict

from published import attention, recipe

STREAMS = 4 * 2560  # of the residual stream, side by side
HYPER = STREAMS + 2 * STREAMS * 320  # norm and low-rank mixer of a hyper-connection

FACTS = dict(
    title="Qwen3.8-Flash-Next",
    developer="Alibaba",
    released="2026-08",
    source="Qwen3.8-Flash-Next blog post, 2026-08 (125B, and 51B of n-gram embeddings); the class"
    " qwen4_exp of transformers 5.24",
    upstream="Qwen/Qwen3.8-Flash-Next",
    context=262_144,
    total="176B",
    active="6B",
    active_excludes="embedding",
    unsupported=[
        "an indexer that chooses blocks of 4 keys, 2,048 keys in all, for each query (here every query"
        " attends to all)",
        "hyper-connections, four residual streams, in place of norms",
        "embeddings of 2 and 3 tokens, of which the second layer reads 16 rows of 160 for each token",
        "a sigmoid, and not SiLU, in the output gate of Gated DeltaNet",
        "the vision encoder, and the module that predicts further tokens (4B of the published 180B)",
    ],
    left_out={
        "the indexers": 12 * (2560 * 5 * 128 + 2 * 128),
        "the hyper-connections, less the norms": 96 * (HYPER + 4 * STREAMS) + HYPER - 97 * 2560,
        "the maps of the n-gram embeddings": 2560 * (STREAMS + 2560) + 3 * STREAMS + 4 * STREAMS,
    },
    outside={"the rows of the n-gram embeddings": 320_001_536 * 160},
    unconfirmed=["heads of Gated DeltaNet", "heads of the indexer"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    full = attention(
        24, 2, 256, rope=dict(theta=10_000_000.0, fraction=0.25), qk_norm=True, output_gate=True
    )
    gdn = dict(kind="gdn", heads=16, value_heads=32, head_dim=128, value_dim=128)
    return recipe(
        arg,
        width=2560,
        depth=48,
        pattern="gdn*3 full",
        mixers=dict(gdn=gdn, full=full),
        mlp=dict(
            kind="moe",
            experts=512,
            top_k=10,
            hidden=640,
            shared_hidden=640,
            shared_gate=True,
            router=dict(normalize=True),
        ),
        vocab_size=248_320,
        norm="rmsnorm_unit_offset",
        tie_embeddings=False,
    )

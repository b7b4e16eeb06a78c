"""DeepSeek-V4.1-Flash: windows of 128 tokens, and keys of four layers that all layers above share.

Hardware: accelerators with memory for 1.5 TB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show deepseek_v4_1_flash`); no loss is stated.
Run:      hybridlm train --config configs/gallery/deepseek_v4_1_flash.py --workdir runs/deepseek_v4_1_flash
"""

from ml_collections import ConfigDict

from published import attention, recipe

WIDTH, HEADS, SIZE, Q_RANK = 5120, 64, 512, 1280
CHANNELS, GROUPS, OUT_RANK = HEADS * SIZE, 8, 1024
INDEX_HEADS, INDEX_SIZE = 32, 128
NGRAMS = (
    3 * 8 * 256
)  # entries that a layer with n-grams reads for a token: 3 lengths, 8 hashes, 256
LOW_RANK = Q_RANK * (WIDTH + CHANNELS) + OUT_RANK * (CHANNELS + GROUPS * WIDTH)

FACTS = dict(
    title="DeepSeek-V4.1-Flash",
    developer="DeepSeek",
    released="2026-09",
    source="DeepSeek-V4.1-Flash technical report, 2026-09 (552B, and 196B of n-gram embeddings); the class"
    " deepseek_v41 of transformers, whose default sizes are this model's",
    upstream="deepseek-ai/DeepSeek-V4.1-Flash",
    context=1_048_576,
    total="552B",
    total_excludes="n-gram embeddings",
    active="16B",
    active_excludes="embedding",
    unsupported=[
        "keys of 2 tokens each, made by layers 3, 9 and 15 for the five layers above each too, and keys of"
        " each token, made by layer 21 for all layers above; eight layers choose 512 of them for a query,"
        " and four of these among 2,048 blocks of 8 that layer 21 chose",
        "queries and outputs of low rank, and values that are the rotated keys",
        "embeddings of 2, 3 and 4 tokens, which two layers add to their streams",
        "square roots of softplus as the router's scores (here sigmoids)",
        "a prefill that runs the upper 20 layers on the last tokens alone (8B active parameters)",
        "the modules that draft further tokens",
        "the vision encoder",
    ],
    beside={
        "lower": "compressed sparse attention",
        "upper": "sparse attention to keys of layer 21",
    },
    surplus={
        "full maps of queries and outputs, beyond those of low rank": 40
        * (2 * WIDTH * CHANNELS - LOW_RANK)
    },
    left_out={
        "the norms of queries' latents and of keys": 40 * (Q_RANK + SIZE),
        "the compressors": 3 * (2 * WIDTH * SIZE + SIZE) + WIDTH * SIZE + SIZE,
        "the indexers": 8 * (Q_RANK * INDEX_HEADS * INDEX_SIZE + WIDTH * INDEX_HEADS)
        + 4 * (SIZE * INDEX_SIZE + INDEX_SIZE),
        "the maps of the n-gram embeddings": 2 * (NGRAMS * 5 * WIDTH + 2 * 4 * WIDTH),
    },
    outside={"the rows of the n-gram embeddings": (384_006_168 + 384_016_682) * 256},
    left_out_kv={"compressed keys": 3 * 2 * SIZE // 2 + 2 * SIZE},
    left_out_cache={"the indexers' keys": 3 * 2 * INDEX_SIZE // 2 + 2 * INDEX_SIZE},
    unconfirmed=["how the last streams are summed (here their mean)"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    yarn = dict(factor=16.0, length=65_536, attention=1.0)
    common = dict(window=128, values="keys", qk_norm="l2", sinks=True)
    rope = dict(fraction=0.125, interleaved=True)
    window = attention(HEADS, 1, SIZE, rope=dict(rope, theta=10_000.0), **common)
    sparse = attention(HEADS, 1, SIZE, rope=dict(rope, theta=160_000.0, yarn=yarn), **common)
    router = dict(
        scores="sigmoid", normalize=True, normalize_eps=1e-20, scale=1.5, choice_bias=True
    )
    return recipe(
        arg,
        width=WIDTH,
        depth=40,
        prefix="window*2 lower*18",
        pattern="upper",
        mixers=dict(window=window, lower=sparse, upper=sparse),
        mlp=dict(
            kind="moe",
            experts=384,
            top_k=6,
            hidden=2304,
            shared_hidden=2304,
            clamp=10.0,
            router=router,
        ),
        vocab_size=129_280,
        tie_embeddings=False,
        streams=dict(count=4),
    )

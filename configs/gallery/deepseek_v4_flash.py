"""DeepSeek-V4-Flash: windows of 128 tokens, compressed keys beside them, four residual streams.

Hardware: accelerators with memory for 568 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show deepseek_v4_flash`); no loss is stated.
Run:      hybridlm train --config configs/gallery/deepseek_v4_flash.py --workdir runs/deepseek_v4_flash
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from published import attention, recipe

SIZE, OUT_RANK, INDEX_HEADS, INDEX_SIZE = 512, 1024, 64, 128


class Sizes(NamedTuple):
    """What models of the family differ in.

    Attributes:
      q_rank: of the queries' latent. groups: of the outputs' maps of low rank.
      windows, near, far: layers with a window alone, with keys of 4 tokens, with keys of 128.
      chosen: keys of 4 tokens that the indexer chooses.
    """

    width: int
    heads: int
    q_rank: int
    groups: int
    experts: int
    hidden: int
    scale: float
    windows: int
    near: int
    far: int
    chosen: int

    @property
    def depth(self) -> int:
        return self.windows + self.near + self.far


def facts(sizes: Sizes) -> dict[str, Any]:
    """The entries of FACTS that follow from the sizes."""
    width, channels = sizes.width, sizes.heads * SIZE
    low_rank = sizes.q_rank * (width + channels) + OUT_RANK * (channels + sizes.groups * width)
    keys_of_4 = 2 * width * 2 * SIZE + 4 * 2 * SIZE + SIZE
    indexer_keys = 2 * width * 2 * INDEX_SIZE + 4 * 2 * INDEX_SIZE + INDEX_SIZE
    indexer = sizes.q_rank * INDEX_HEADS * INDEX_SIZE + width * INDEX_HEADS + indexer_keys
    return dict(
        unsupported=[
            f"keys of 4 tokens each beside the window in {sizes.near} layers, of which an indexer"
            f" chooses {sizes.chosen:,} for a query, and keys of 128 tokens each in {sizes.far}",
            "queries and outputs of low rank, and values that are the rotated keys",
            "square roots of softplus as the router's scores (here sigmoids), and experts chosen by"
            " the token alone in the first three layers",
            "weights of the last sum of streams (here their mean)",
            "the module that predicts a second token",
        ],
        beside={"near": "compressed sparse attention", "far": "heavily compressed attention"},
        surplus={
            "full maps of queries and outputs, beyond those of low rank": sizes.depth
            * (2 * width * channels - low_rank)
        },
        left_out={
            "the norms of queries' latents and of keys": sizes.depth * (sizes.q_rank + SIZE),
            "the compressors": sizes.near * keys_of_4
            + sizes.far * (2 * width * SIZE + 128 * SIZE + SIZE),
            "the indexers": sizes.near * indexer,
            "the last sum of streams": 16 * width + 4 + 1,
        },
        left_out_kv={"compressed keys": sizes.near * 2 * SIZE // 4 + sizes.far * 2 * SIZE // 128},
        left_out_cache={"the indexers' keys": sizes.near * 2 * INDEX_SIZE // 4},
    )


def model(arg: str, sizes: Sizes) -> ConfigDict:
    """The recipe of a model of the family."""
    yarn = dict(factor=16.0, length=65_536, attention=1.0)

    def window(**rope: Any) -> dict[str, Any]:
        return attention(
            sizes.heads,
            1,
            SIZE,
            window=128,
            values="keys",
            qk_norm="l2",
            sinks=True,
            rope=dict(fraction=0.125, interleaved=True, **rope),
        )

    compressed = window(theta=160_000.0, yarn=yarn)
    router = dict(
        scores="sigmoid", normalize=True, normalize_eps=1e-20, scale=sizes.scale, choice_bias=True
    )
    mixers = dict(near=compressed, far=compressed)
    prefix = "far*2"
    if sizes.windows:
        mixers["window"], prefix = window(theta=10_000.0), f"window*{sizes.windows}"
    return recipe(
        arg,
        width=sizes.width,
        depth=sizes.depth,
        prefix=prefix,
        pattern="near far",
        suffix="near",
        mixers=mixers,
        mlp=dict(
            kind="moe",
            experts=sizes.experts,
            top_k=6,
            hidden=sizes.hidden,
            shared_hidden=sizes.hidden,
            clamp=10.0,
            router=router,
        ),
        vocab_size=129_280,
        tie_embeddings=False,
        streams=dict(count=4),
    )


SIZES = Sizes(
    width=4096,
    heads=64,
    q_rank=1024,
    groups=8,
    experts=256,
    hidden=2048,
    scale=1.5,
    windows=2,
    near=21,
    far=20,
    chosen=512,
)
FACTS = dict(
    title="DeepSeek-V4-Flash",
    developer="DeepSeek",
    released="2026-04",
    source="arXiv 2606.19348; config.json of the published weights; the class deepseek_v4 of transformers",
    upstream="deepseek-ai/DeepSeek-V4-Flash",
    context=1_048_576,
    total="284B",
    active="13B",
    active_excludes="embedding",
    **facts(SIZES),
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return model(arg, SIZES)

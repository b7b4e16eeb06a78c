"""Mixture of block attention: sparse attention that chooses blocks of the past by their mean keys."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers import patterns, rows, token_cache
from hybridlm.models.mixers.base import LayerSpec, MixerConfig, SequenceContext
from hybridlm.models.mixers.capabilities import AttentionMixer
from hybridlm.models.mixers.token_cache import TokenCache
from hybridlm.models.positional import Rope, RopeConfig, check_rope, no_rope
from hybridlm.parallel import ops
from hybridlm.settings.bounds import PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas.block_sparse import (
    BlockSparseState,
    decode_block_sparse_attention,
    update_means,
    visible_keys,
)


@settings
class MoBAConfig(MixerConfig):
    """Mixture of block attention.

    This library's sparse mixer, because it can be both exact and fast. It has attention's
    parameters and no others, so a layer can switch between MoBA and full attention. Blocks are
    counted from the document's start, so that blocks and choices are the same however the document
    is packed, split or decoded; whole blocks make dense products. (An indexer that chooses single
    tokens, as DeepSeek's does, scores every pair of tokens and needs its own loss.)

    Attributes:
      heads: query heads; each chooses blocks of its own.
      kv_heads: key/value heads; None is `heads` (MHA), 1 is MQA, between is GQA.
      head_dim: size of a head; None is width // heads.
      block: tokens of a block, counted from the document's start.
      top_k: blocks a query sees, its own included.
      rope: RoPE's settings, or None for NoPE. Mean keys are those of rotated keys.
    """

    kind_name: ClassVar[str] = "moba"
    other_names: ClassVar[Mapping[str, str]] = {
        "mixture_of_block_attention": "",
        "block_sparse_attention": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads", "kv_heads")
    equation: ClassVar[str] = (
        "o_t = attention to own block and top_{k-1} blocks n by q_t . mean k_n"
    )
    source: ClassVar[str] = "arXiv 2502.13189 sec. 2.2"
    operations: ClassVar[tuple[str, ...]] = ("block_sparse",)

    heads: PositiveInt
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    block: PositiveInt = 512
    top_k: PositiveInt = 3
    rope: RopeConfig | None = RopeConfig()

    def __post_init__(self):
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        require(
            self.heads % kv_heads == 0,
            "kv_heads",
            f"is {kv_heads} and does not divide heads {self.heads}",
        )
        object.__setattr__(self, "kv_heads", kv_heads)

    def check_width(self, width: int) -> None:
        require(
            self.head_dim is not None or width % self.heads == 0,
            "heads",
            f"is {self.heads} and does not divide model.width {width}: set head_dim",
        )
        check_rope(self.rope, self.head_size(width))

    def head_size(self, width: int) -> int:
        return self.head_dim or width // self.heads

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "MoBA":
        return MoBA(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        """Counts logits and values of the keys a query sees, and its products with mean keys."""
        size = self.head_size(width)
        projections = 4 * width * size * (self.heads + self.kv_heads)
        keys, means = seen(seq_len, self.block, self.top_k)
        return projections + self.heads * size * (4 * keys + 2 * means)

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        elements = self.kv_heads * self.head_size(width)
        return elements * (2 * seq_len * itemsize + 4 * -(-seq_len // self.block))

    def reach(self, seq_len: int) -> int:
        return seq_len

    @property
    def mechanism(self) -> str:
        position = "RoPE" if self.rope else "NoPE"
        return f"{self.top_k} blocks of {self.block} attention, {position}"


def seen(seq_len: int, block: int, top_k: int) -> tuple[float, float]:
    """(keys a query attends to, mean keys it is multiplied with), averaged over a document."""
    keys = means = 0
    for number in range(-(-seq_len // block)):
        queries = min(block, seq_len - number * block)
        keys += queries * (queries + 1) / 2 + queries * block * min(number, top_k - 1)
        means += queries * number * (top_k > 1)
    return keys / seq_len, means / seq_len


class MoBACache(NamedTuple):
    """Keys and values of past tokens, and (float32) the mean keys of the newest document's blocks.

    Decoding reads the means and the chosen blocks, never all keys.
    """

    tokens: TokenCache
    means_BNGK: jax.Array


class MoBA(AttentionMixer):
    """The mixer of `MoBAConfig`."""

    def __init__(self, config: MoBAConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, size = spec.width, config.head_size(spec.width)
        heads, kv_heads = config.heads, config.kv_heads
        self.config = config
        self.q = Linear(width, heads * size, ("embed", "heads"), rngs=rngs)
        self.k = Linear(width, kv_heads * size, ("embed", "kv_heads"), rngs=rngs)
        self.v = Linear(width, kv_heads * size, ("embed", "kv_heads"), rngs=rngs)
        self.out = Linear(heads * size, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)
        self.rope = Rope(config.rope, size) if config.rope else no_rope
        self.size = size

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self._attend(*self._project(x_BTD, context), context, None)

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> MoBACache:
        """An empty cache for at most `max_len` tokens."""
        shape = (self.config.kv_heads, self.size)
        blocks = -(-max_len // self.config.block)
        means_dtype = jnp.promote_types(dtype, jnp.float32)
        return MoBACache(
            token_cache.empty(batch, max_len, (shape, shape), dtype),
            jnp.zeros((batch, blocks, *shape), means_dtype),
        )

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: MoBACache
    ) -> tuple[jax.Array, MoBACache]:
        ids_BT, old = context.segment_ids_BT, state.tokens
        q, k, v = self._project(x_BTD, context)
        tokens = token_cache.write(old, (k, v), ids_BT)
        first_B = tokens.document_start_B
        means_BNGK = update_means(
            state.means_BNGK,
            tokens.entries[0],
            first_B,
            jnp.maximum(old.length - first_B, 0),
            tokens.length - first_B,
            time=x_BTD.shape[1],
            block=self.config.block,
        )
        if x_BTD.shape[1] == 1:
            position_B = jnp.where(ids_BT[:, 0] == 0, -1, old.length - first_B)
            out_BHV = decode_block_sparse_attention(
                q[:, 0],
                *tokens.entries,
                means_BNGK,
                first_B,
                position_B,
                block=self.config.block,
                top_k=self.config.top_k,
            )
            y_BTD = self.out(out_BHV.reshape(out_BHV.shape[0], 1, -1))
        else:
            (k_BSGK, v_BSGV), ids_BS = token_cache.in_order(old)
            past = BlockSparseState(k_BSGK, v_BSGV, ids_BS, token_cache.positions(old))
            y_BTD = self._attend(q, k, v, context, past)
        return y_BTD, MoBACache(tokens, means_BNGK)

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> rows.AttentionRows:
        q_BTHK, k_BTGK, _ = self._project(x_BTD, context)
        visible_BHQT = self._visible(q_BTHK, k_BTGK, context, rows_BQ)
        q_BQHK = rows.take(q_BTHK, rows_BQ)
        return rows.probabilities(q_BQHK, k_BTGK, visible_BHQT, scale=self.size**-0.5)

    def _visible(
        self, q_BTHK: jax.Array, k_BTGK: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> jax.Array:
        """bool (B, H, Q, T): the keys in the blocks that the queries at the rows choose."""
        blocks = dict(block=self.config.block, top_k=self.config.top_k)
        q_BQHK, ids_BT = rows.take(q_BTHK, rows_BQ), context.segment_ids_BT
        return visible_keys(q_BQHK, k_BTGK, rows_BQ, ids_BT, **blocks)

    def _project(
        self, x_BTD: jax.Array, context: SequenceContext
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch, time, _ = x_BTD.shape
        q_BTHK = self.q(x_BTD).reshape(batch, time, self.config.heads, self.size)
        k_BTGK = self.k(x_BTD).reshape(batch, time, self.config.kv_heads, self.size)
        v_BTGV = self.v(x_BTD).reshape(batch, time, self.config.kv_heads, self.size)
        positions_BT = context.positions_BT
        q_BTHK, k_BTGK = context.hook("hook_q", q_BTHK), context.hook("hook_k", k_BTGK)
        q_BTHK, k_BTGK = self.rope(q_BTHK, positions_BT), self.rope(k_BTGK, positions_BT)
        if self.config.rope is not None:
            q_BTHK = context.hook("hook_rot_q", q_BTHK)
            k_BTGK = context.hook("hook_rot_k", k_BTGK)
        return q_BTHK, k_BTGK, context.hook("hook_v", v_BTGV)

    def _attend(
        self,
        q_BTHK: jax.Array,
        k_BTGK: jax.Array,
        v_BTGV: jax.Array,
        context: SequenceContext,
        past: BlockSparseState | None,
    ) -> jax.Array:
        out_BTHV, _ = ops.block_sparse_attention(
            q_BTHK,
            k_BTGK,
            v_BTGV,
            block=self.config.block,
            top_k=self.config.top_k,
            segment_ids=context.segment_ids_BT,
            initial_state=past,
        )
        if past is None:
            out_BTHV = patterns.observed(
                context,
                out_BTHV,
                q_BTHK,
                k_BTGK,
                v_BTGV,
                lambda rows_BQ: self._visible(q_BTHK, k_BTGK, context, rows_BQ),
                scale=self.size**-0.5,
            )
        out_BTHV = context.hook("hook_z", out_BTHV)
        return self.out(out_BTHV.reshape(*out_BTHV.shape[:2], -1))

"""DeepSeek's sparse attention: latent attention to the tokens that a small indexer chooses."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers import patterns, rows, token_cache
from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.models.mixers.mla import MLA, MLAConfig
from hybridlm.models.mixers.spans import mean_keys
from hybridlm.models.mixers.token_cache import TokenCache
from hybridlm.models.norms import LayerNorm
from hybridlm.models.positional import Rope, no_rope
from hybridlm.parallel import ops
from hybridlm.settings.bounds import NonNegativeFloat, PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas.indexed import IndexedState, chosen_keys

NORM_EPS = 1e-6  # of the norm of the indexer's keys, which all published models share


@settings
class DSAConfig(MLAConfig):
    """DeepSeek sparse attention.

    Latent attention (`mla`) in which a query sees the `top_k` tokens of its document that an indexer
    scores highest. The indexer reads the queries' latent and the layer's input; it has its own loss
    and passes no gradient on. It scores all pairs of tokens, so that the work grows with the square of
    the length, as that of the indexer's small heads. The forms in XLA multiply every query with
    every key besides, and mask what was not chosen; FLOPs count the chosen keys.

    Attributes:
      q_rank: size of the queries' latent, which the indexer reads, too.
      index_heads: heads of the indexer.
      index_dim: size of their queries and of the one key they share; its first `qk_rope` dimensions
        are rotated.
      top_k: tokens that a query sees at most.
      index_interleaved: rotate neighbours in the indexer (GLM-5) instead of halves (DeepSeek-V3.2).
      index_loss: weight of the indexer's loss: the cross-entropy of the softmax of its scores with
        the mean attention of the heads, over the chosen tokens.
    """

    kind_name: ClassVar[str] = "dsa"
    other_names: ClassVar[Mapping[str, str]] = {
        "deepseek_sparse_attention": "",
        "sparse_latent_attention": "",
        "lightning_indexer": "",
    }
    equation: ClassVar[str] = (
        "o_t = latent attention to the top k tokens s by sum_i w_ti relu(q^I_ti . k^I_s)"
    )
    source: ClassVar[str] = "arXiv 2512.02556 sec. 2.1"
    operations: ClassVar[tuple[str, ...]] = ("indexed",)

    q_rank: PositiveInt = 1536
    index_heads: PositiveInt = 64
    index_dim: PositiveInt = 128
    top_k: PositiveInt = 2048
    index_interleaved: bool = False
    index_loss: NonNegativeFloat = 1.0

    def __post_init__(self):
        super().__post_init__()
        require(
            not self._rotates or self.index_dim >= self.qk_rope,
            "index_dim",
            f"is {self.index_dim} and below qk_rope {self.qk_rope}, the dimensions that are rotated",
        )

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "DSA":
        return DSA(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        """Counts the chosen keys in attention, and the indexer's scores of all earlier tokens."""
        dense = super().flops_per_token(width, seq_len)
        every, chosen = mean_keys(seq_len, None), mean_keys(seq_len, self.top_k)
        sizes = self.heads * (self.key_size + self.value_dim)
        queries = self.index_heads * self.index_dim
        indexer = self.q_rank * queries + width * (self.index_dim + self.index_heads)
        indexer += (queries + self.index_heads) * every
        return dense + 2 * (indexer - sizes * (every - chosen))

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        latents = super().state_bytes(width, seq_len, itemsize)
        return latents + seq_len * self.index_dim * itemsize

    @property
    def has_loss(self) -> bool:
        return self.index_loss > 0

    @property
    def mechanism(self) -> str:
        return f"{self.top_k} chosen tokens, {super().mechanism}"


class Index(NamedTuple):
    """What the indexer makes of its tokens.

    Attributes:
      q_BTIJ, k_BTJ: rotated.
      w_BTI: of its heads, with the factor on logits.
    """

    q_BTIJ: jax.Array
    k_BTJ: jax.Array
    w_BTI: jax.Array


class DSA(MLA):
    """The mixer of `DSAConfig`."""

    def __init__(self, config: DSAConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        super().__init__(config, spec, rngs=rngs)
        self.indexer = Indexer(config, spec.width, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self._parallel(x_BTD, context)[0]

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        y_BTD, cross_BTH = self._parallel(x_BTD, context)
        there_BT = context.segment_ids_BT != 0
        total = jnp.sum(jnp.where(there_BT, jnp.mean(cross_BTH, axis=-1), 0))
        return y_BTD, self.config.index_loss * total / jnp.maximum(jnp.sum(there_BT), 1)

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> TokenCache:
        """An empty cache of latents with their shared key part, and of the indexer's keys."""
        sizes = (self.config.kv_rank + self.config.qk_rope,), (self.config.index_dim,)
        return token_cache.empty(batch, max_len, sizes, dtype)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: TokenCache
    ) -> tuple[jax.Array, TokenCache]:
        ids_BT = context.segment_ids_BT
        q_BTHK, latent_BTL = self._project(x_BTD, context)
        index = self._index(x_BTD, context)
        entries = latent_BTL, index.k_BTJ
        if x_BTD.shape[1] == 1:
            state = token_cache.write(state, entries, ids_BT)
            latents_BSL, index_k_BSJ = state.entries
            visible_BS = token_cache.visible(state, ids_BT)
            chosen_B1S = chosen_keys(
                index.q_BTIJ,
                index_k_BSJ,
                index.w_BTI,
                visible_BS[:, None],
                top_k=self.config.top_k,
                oldest=state.length % visible_BS.shape[1],
            )
            return self._output(self._decode(q_BTHK, latents_BSL, chosen_B1S[:, 0])), state
        (past_BSL, past_BSJ), past_ids_BS = token_cache.in_order(state)
        past = IndexedState(*self._expand(past_BSL), past_BSJ, past_ids_BS)
        out_BTHV, _ = self._attend(q_BTHK, self._expand(latent_BTL), index, context, past)
        return self._output(out_BTHV), token_cache.write(state, entries, ids_BT)

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> rows.AttentionRows:
        q_BTHK, latent_BTL = self._project(x_BTD, context)
        k_BTHK, _ = self._expand(latent_BTL)
        chosen_B1QT = self._chosen(self._index(x_BTD, context), context, rows_BQ)
        q_BQHK = rows.take(q_BTHK, rows_BQ)
        return rows.probabilities(q_BQHK, k_BTHK, chosen_B1QT, scale=self.scale)

    def _chosen(self, index: Index, context: SequenceContext, rows_BQ: jax.Array) -> jax.Array:
        """bool (B, 1, Q, T): the tokens that the queries at the rows attend to."""
        visible_B1QT = rows.visible_keys(context.segment_ids_BT, rows_BQ)
        chosen_BQT = chosen_keys(
            rows.take(index.q_BTIJ, rows_BQ),
            index.k_BTJ,
            rows.take(index.w_BTI, rows_BQ),
            visible_B1QT[:, 0],
            top_k=self.config.top_k,
        )
        return chosen_BQT[:, None]

    @property
    def has_window(self) -> bool:
        return False

    def narrowed(self, window: int) -> "DSA":
        raise NotImplementedError("the keys that an indexer chooses have no window")

    def _parallel(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """The output, and the indexer's cross-entropy (B, T, H) with each head's attention."""
        q_BTHK, latent_BTL = self._project(x_BTD, context)
        index = Index(
            *(
                context.hook(f"hook_index_{name}", x)
                for name, x in zip("qkw", self._index(x_BTD, context), strict=True)
            )
        )
        keys = self._expanded(latent_BTL, context)
        out_BTHV, cross_BTH = self._attend(q_BTHK, keys, index, context, None)
        out_BTHV = patterns.observed(
            context,
            out_BTHV,
            q_BTHK,
            *keys,
            lambda rows_BQ: self._chosen(index, context, rows_BQ),
            scale=self.scale,
        )
        return self._output(context.hook("hook_z", out_BTHV)), cross_BTH

    def _index(self, x_BTD: jax.Array, context: SequenceContext) -> Index:
        x_BTD = jax.lax.stop_gradient(x_BTD)
        latent_BTL = jax.lax.stop_gradient(self.q.latent(x_BTD))
        return self.indexer(x_BTD, latent_BTL, context.positions_BT)

    def _attend(
        self,
        q_BTHK: jax.Array,
        keys: tuple[jax.Array, jax.Array],
        index: Index,
        context: SequenceContext,
        past: IndexedState | None,
    ) -> tuple[jax.Array, jax.Array]:
        return ops.indexed_attention(
            q_BTHK,
            *keys,
            *index,
            top_k=self.config.top_k,
            segment_ids=context.segment_ids_BT,
            scale=self.scale,
            initial_state=past,
        )


class Indexer(nnx.Module):
    """Queries from the latent of the layer's queries; one key and a weight a head from its input."""

    def __init__(self, config: DSAConfig, width: int, *, rngs: nnx.Rngs):
        heads, size = config.index_heads, config.index_dim
        self.q = Linear(config.q_rank, heads * size, ("rank", "index"), rngs=rngs)
        self.k = Linear(width, size, ("embed", "index"), rngs=rngs)
        self.k_norm = LayerNorm(size, NORM_EPS)
        self.weights = Linear(width, heads, ("embed", "index"), rngs=rngs)
        self.heads, self.factor = heads, (heads * size) ** -0.5
        self.rotated = config.qk_rope if config._rotates else 0
        self.rope = no_rope
        if self.rotated:
            rope = dataclasses.replace(config.rope, interleaved=config.index_interleaved)
            self.rope = Rope(rope, self.rotated)

    def __call__(self, x_BTD: jax.Array, latent_BTL: jax.Array, positions_BT: jax.Array) -> Index:
        q_BTIJ = self.q(latent_BTL).reshape(*x_BTD.shape[:2], self.heads, -1)
        k_BT1J = self.k_norm(self.k(x_BTD))[:, :, None]
        q_BTIJ, k_BT1J = (self._turned(y, positions_BT) for y in (q_BTIJ, k_BT1J))
        return Index(q_BTIJ, k_BT1J[:, :, 0], self.weights(x_BTD) * self.factor)

    def _turned(self, y_BTIJ: jax.Array, positions_BT: jax.Array) -> jax.Array:
        first, rest = jnp.split(y_BTIJ, [self.rotated], axis=-1)
        return jnp.concatenate([self.rope(first, positions_BT), rest], axis=-1)

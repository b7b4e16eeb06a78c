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
from hybridlm.models.norms import LayerNorm, at_least_float32
from hybridlm.models.positional import Rope, no_rope
from hybridlm.parallel import ops
from hybridlm.settings.bounds import NonNegativeFloat, PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas.indexed import IndexedState, Pools, chosen_keys

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
      pool: more than 1 makes one key of as many tokens, the first of a document, the next, and so on: a
        sum of their keys, weighed channel by channel with a softmax over these tokens of a linear map of
        the layer's input and a learned number for each place in the pool (GLM-5.3-Flash, 16). The
        indexer chooses `top_k / pool` pools, of those whose tokens the query sees all. No loss of such
        an indexer has been published: set index_loss=0.
      pool_tail: with pools, a query also sees the tokens after its document's last whole pool.
      index_out: name under which layers above may use this layer's indexer; None for none.
      index_in: name of the indexer that chooses this layer's tokens, that of the highest layer below
        with this index_out (arXiv 2603.12201; GLM-5.1): it has no indexer and caches no keys of one.
        Its loss trains that indexer, too. Its scores are computed again from the indexer's queries
        and keys, so that no array of tokens x tokens is kept. None has its own.
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
    cache_names: ClassVar[tuple[str, str]] = ("index_out", "index_in")

    q_rank: PositiveInt = 1536
    index_heads: PositiveInt = 64
    index_dim: PositiveInt = 128
    top_k: PositiveInt = 2048
    index_interleaved: bool = False
    index_loss: NonNegativeFloat = 1.0
    pool: PositiveInt = 1
    pool_tail: bool = True
    index_out: str | None = None
    index_in: str | None = None

    def __post_init__(self):
        super().__post_init__()
        require(self.window is None, "window", "goes without chosen tokens: leave it out")
        require(
            self.top_k % self.pool == 0,
            "pool",
            f"is {self.pool}: it must divide top_k, {self.top_k}",
        )
        require(
            self.pool == 1 or not self.index_loss,
            "index_loss",
            "is not defined for pools: set it to 0",
        )
        for name in ("index_out", "index_in"):
            require(getattr(self, name) != "", name, "is empty: give a name, or None")
        require(
            self.index_in is None or self.index_out is None,
            "index_in",
            "goes without index_out: layers above can name the layer that has the indexer",
        )
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
        indexer += self.pooling * width * self.index_dim
        indexer = 0 if self.index_in else indexer
        indexer += (queries + self.index_heads) * every / self.pool
        return dense + 2 * (indexer - sizes * (every - chosen))

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        latents = super().state_bytes(width, seq_len, itemsize)
        if self.index_in:  # the layer below has the indexer's keys
            return latents
        keys = seq_len + self.pooling * 2 * min(self.pool, seq_len)
        return latents + keys * self.index_dim * itemsize

    @property
    def pooling(self) -> bool:
        """Whether a key stands for several tokens."""
        return self.pool > 1

    @property
    def has_loss(self) -> bool:
        return self.index_loss > 0

    @property
    def mechanism(self) -> str:
        shared = ", indexer of a layer below" if self.index_in else ""
        return f"{self.top_k} chosen tokens, {super().mechanism}{shared}"

    def cross_layer(self, width: int, depth: int) -> dict[str, tuple[int, ...]]:
        name = self.index_in or self.index_out
        if name is None:
            return {}
        heads, size = self.index_heads, self.index_dim
        return dict(zip(_channels(name), ((heads, size), (size,), (heads,)), strict=True))

    @property
    def hands_on(self) -> str | None:
        return self.index_out

    def handed_on(self, state: "DSAState") -> TokenCache:
        """The cache without the latents: the indexer's keys."""
        return state.tokens._replace(entries=state.tokens.entries[1:])

    @property
    def reads_cache(self) -> str | None:
        return self.index_in

    @property
    def cache_kind(self) -> tuple[str, int]:
        return (self.kind_name, self.pool)


class DSAState(NamedTuple):
    """The decoding state.

    Attributes:
      tokens: latents with their shared key part, and the indexer's keys.
      pool: with pools, the indexer's keys and weights of the last tokens, of which the next pool's key
        is made; () without.
    """

    tokens: TokenCache
    pool: TokenCache | tuple[()]


class Index(NamedTuple):
    """What the indexer makes of its tokens.

    Attributes:
      q_BTIJ, k_BTJ: rotated. With pools, k_BTJ has a pool's key at its last token.
      w_BTI: of its heads, with the factor on logits.
    """

    q_BTIJ: jax.Array
    k_BTJ: jax.Array
    w_BTI: jax.Array


class DSA(MLA):
    """The mixer of `DSAConfig`."""

    def __init__(self, config: DSAConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        super().__init__(config, spec, rngs=rngs)
        own = config.index_in is None
        self.indexer = Indexer(config, spec.width, rngs=rngs) if own else None

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self._parallel(x_BTD, context)[0]

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        y_BTD, cross_BTH = self._parallel(x_BTD, context)
        there_BT = context.segment_ids_BT != 0
        total = jnp.sum(jnp.where(there_BT, jnp.mean(cross_BTH, axis=-1), 0))
        return y_BTD, self.config.index_loss * total / jnp.maximum(jnp.sum(there_BT), 1)

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> DSAState:
        """Empty caches of latents with their shared key part, and of the indexer's keys."""
        config = self.config
        sizes = ((config.kv_rank + config.qk_rope,), (config.index_dim,))
        if self.indexer is None:
            sizes = sizes[:1]
        pool = ()
        if self.indexer is not None and config.pooling:
            pool = token_cache.empty(batch, config.pool, sizes[1:] * 2, dtype)
        return DSAState(token_cache.empty(batch, max_len, sizes, dtype), pool)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: DSAState
    ) -> tuple[jax.Array, DSAState]:
        ids_BT = context.segment_ids_BT
        q_BTHK, latent_BTL = self._project(x_BTD, context)
        index, pool = self._index(x_BTD, context, state.pool)
        before = state
        entries = (latent_BTL, index.k_BTJ)[: len(state.tokens.entries)]
        state = DSAState(token_cache.write(state.tokens, entries, ids_BT), pool)
        one = x_BTD.shape[1] == 1
        # A single token reads its own key from the cache; several read the cache and their own.
        cache = self._index_cache(context, state if one else before)
        self._hand_on(context, index, cache)
        if one:
            latents_BSL, (index_k_BSJ,) = state.tokens.entries[0], cache.entries
            visible_BS = token_cache.visible(cache, ids_BT)
            chosen_B1S = chosen_keys(
                index.q_BTIJ,
                index_k_BSJ,
                index.w_BTI,
                visible_BS[:, None],
                top_k=self.config.top_k,
                oldest=cache.length % visible_BS.shape[1],
                pools=self._pools(cache.indices_S[None] - cache.document_start_B[:, None]),
            )
            return self._output(self._decode(q_BTHK, latents_BSL, chosen_B1S[:, 0])), state
        (past_BSL, *_), past_ids_BS = token_cache.in_order(before.tokens)
        (past_BSJ,), _ = token_cache.in_order(cache)
        past = IndexedState(*self._expand(past_BSL), past_BSJ, past_ids_BS)
        out_BTHV, _ = self._attend(q_BTHK, self._expand(latent_BTL), index, context, past)
        return self._output(out_BTHV), state

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> rows.AttentionRows:
        q_BTHK, latent_BTL = self._project(x_BTD, context)
        k_BTHK, _ = self._expand(latent_BTL)
        chosen_B1QT = self._chosen(self._index(x_BTD, context)[0], context, rows_BQ)
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
            pools=self._pools(context.positions_BT),
        )
        return chosen_BQT[:, None]

    def _pools(self, positions_BS: jax.Array) -> Pools | None:
        """How keys at these positions of their document stand for pools; None where they do not."""
        if not self.config.pooling:
            return None
        return Pools(self.config.pool, self.config.pool_tail, positions_BS)

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
                for name, x in zip("qkw", self._index(x_BTD, context)[0], strict=True)
            )
        )
        self._hand_on(context, index)
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

    def _index_cache(self, context: SequenceContext, state: DSAState) -> TokenCache:
        """The cache of the indexer's keys: the layer's own, or that of the layer below."""
        if self.indexer is None:
            return context.caches[self.config.index_in]
        return self.config.handed_on(state)

    def _hand_on(
        self, context: SequenceContext, index: Index, cache: TokenCache | None = None
    ) -> None:
        """Puts what the indexer made, and its cache, where layers above read them."""
        name = self.config.index_out
        context.hand_on(name, dict(zip(_channels(name), index, strict=True)), cache)

    def _index(
        self, x_BTD: jax.Array, context: SequenceContext, past: TokenCache | tuple[()] = ()
    ) -> tuple[Index, TokenCache | tuple[()]]:
        """What the indexer makes of these tokens, and the new cache of the last ones, for pools."""
        if self.indexer is None:
            channels = _channels(self.config.index_in)
            return Index(*(context.cross_layer[name] for name in channels)), ()
        x_BTD = jax.lax.stop_gradient(x_BTD)
        latent_BTL = jax.lax.stop_gradient(self.q.latent(x_BTD))
        index = self.indexer(x_BTD, latent_BTL, context.positions_BT)
        if self.indexer.pool is None:
            return index, ()
        k_BTJ, past = self.indexer.pool(x_BTD, index.k_BTJ, context, past)
        return index._replace(k_BTJ=k_BTJ), past

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
            pool=self.config.pool,
            pool_tail=self.config.pool_tail,
            segment_ids=context.segment_ids_BT,
            scale=self.scale,
            initial_state=past,
        )


class Pool(nnx.Module):
    """The keys of pools: at each token, that of the pool that would end there."""

    def __init__(self, tokens: int, width: int, size: int, *, rngs: nnx.Rngs):
        self.gate = Linear(width, size, ("embed", "index"), rngs=rngs)
        self.places = nnx.Param(jnp.zeros((tokens, size)), axes=("taps", "index"))
        self.tokens = tokens

    def __call__(
        self,
        x_BTD: jax.Array,
        k_BTJ: jax.Array,
        context: SequenceContext,
        past: TokenCache | tuple[()],
    ) -> tuple[jax.Array, TokenCache | tuple[()]]:
        """The keys, 0 at tokens that end no pool, and the cache of the last tokens."""
        time, before = x_BTD.shape[1], self.tokens - 1
        entries = (k_BTJ, self.gate(x_BTD))
        if past:
            (old_k, old_gate), _ = token_cache.in_order(past)
            old = (old_k[:, 1:], old_gate[:, 1:])
            past = token_cache.write(past, entries, context.segment_ids_BT, self.tokens)
        else:
            old = tuple(jnp.zeros((x.shape[0], before, x.shape[2]), x.dtype) for x in entries)
        k_BSJ, gate_BSJ = (
            jnp.concatenate([a.astype(b.dtype), b], axis=1) for a, b in zip(old, entries)
        )
        shifted = [slice(j, j + time) for j in range(self.tokens)]
        places = at_least_float32(self.places[...])
        logits = jnp.stack(
            [
                at_least_float32(gate_BSJ[:, s]) + places[None, j, None]
                for j, s in enumerate(shifted)
            ]
        )
        weights = jax.nn.softmax(logits, axis=0)
        keys = jnp.stack([k_BSJ[:, s] for s in shifted])
        pooled_BTJ = jnp.sum(weights.astype(k_BTJ.dtype) * keys, axis=0)
        ends_BT1 = (context.positions_BT % self.tokens == before)[..., None]
        return jnp.where(ends_BT1, pooled_BTJ, 0), past


def _channels(name: str) -> tuple[str, str, str]:
    """The names in `SequenceContext.cross_layer` of the arrays of an `Index`."""
    return f"{name}.index_q", f"{name}.index_k", f"{name}.index_w"


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
        self.pool = Pool(config.pool, width, size, rngs=rngs) if config.pooling else None

    def __call__(self, x_BTD: jax.Array, latent_BTL: jax.Array, positions_BT: jax.Array) -> Index:
        q_BTIJ = self.q(latent_BTL).reshape(*x_BTD.shape[:2], self.heads, -1)
        k_BT1J = self.k_norm(self.k(x_BTD))[:, :, None]
        q_BTIJ, k_BT1J = (self._turned(y, positions_BT) for y in (q_BTIJ, k_BT1J))
        return Index(q_BTIJ, k_BT1J[:, :, 0], self.weights(x_BTD) * self.factor)

    def _turned(self, y_BTIJ: jax.Array, positions_BT: jax.Array) -> jax.Array:
        first, rest = jnp.split(y_BTIJ, [self.rotated], axis=-1)
        return jnp.concatenate([self.rope(first, positions_BT), rest], axis=-1)

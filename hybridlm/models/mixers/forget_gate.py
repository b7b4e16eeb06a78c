"""The forget gates of attention (Forgetting Transformer, arXiv 2503.02130), and their absence."""

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers import token_cache
from hybridlm.models.mixers.token_cache import TokenCache
from hybridlm.models.norms import at_least_float32
from kernels_pallas.attention import forget


class ForgetGate(nnx.Module):
    """log sigmoid(W x + b), one a token and query head, in at least float32.

    b starts at 0, as in the published code: before training a gate is about 1/2. A cache has the
    log-gates of its tokens as a third entry, float32.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.proj = Linear(width, heads, ("embed", "heads"), rngs=rngs, bias=True)
        self.heads = heads

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return jax.nn.log_sigmoid(at_least_float32(self.proj(x_BTD)))

    def with_gates(self, cache: TokenCache) -> TokenCache:
        """An empty cache with room for the log-gates."""
        dtype = jnp.promote_types(cache.entries[0].dtype, jnp.float32)
        gates_BSH = jnp.zeros((*cache.segment_ids_BS.shape, self.heads), dtype)
        return cache._replace(entries=(*cache.entries, gates_BSH))

    def in_order(self, cache: TokenCache) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """(keys, values and log-gates), and segment ids, oldest first."""
        return token_cache.in_order(cache)

    def bias(self, cache: TokenCache, valid_BS: jax.Array) -> jax.Array:
        """What the newest token adds to its logits, (B, S, H), in the order of the cache.

        The log-gates are summed anew for each token, so that a long document costs no digits.
        """
        ahead = cache.length % valid_BS.shape[1]
        gates_BSH, seen_BS = (jnp.roll(x, -ahead, axis=1) for x in (cache.entries[2], valid_BS))
        return jnp.roll(forget.after_each_token(gates_BSH, seen_BS), ahead, axis=1)

    def between_pairs(self, log_forget_BTH: jax.Array, rows_BQ: jax.Array) -> jax.Array:
        """What the queries at `rows_BQ` add to their logits, (B, H, Q, T)."""
        return forget.between_pairs(forget.bounded(log_forget_BTH), rows_BQ)


class NoForgetGate(nnx.Module):
    """Attention without forget gates."""

    def __call__(self, x_BTD: jax.Array) -> None:
        return None

    def with_gates(self, cache: TokenCache) -> TokenCache:
        return cache

    def in_order(self, cache: TokenCache) -> tuple[tuple[jax.Array | None, ...], jax.Array]:
        entries, ids_BS = token_cache.in_order(cache)
        return (*entries, None), ids_BS

    def bias(self, cache: TokenCache, valid_BS: jax.Array) -> None:
        return None

    def between_pairs(self, log_forget_BTH: None, rows_BQ: jax.Array) -> None:
        return None

"""The indexer's scores, and the tokens that it chooses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas import dispatch


class Pools(NamedTuple):
    """Keys that stand for `size` tokens: the first of a document, the next, and so on.

    Attributes:
      size: tokens of a pool.
      tail: whether a query sees the tokens after its document's last whole pool, too.
      position_BS: of each key in its document. The key of a pool stands at the pool's last token.
    """

    size: int
    tail: bool
    position_BS: Int[Array, "B S"]


def choose(
    scores_BQS: Float[Array, "B Q S"],
    visible_BQS: Bool[Array, "B Q S"],
    top_k: int,
    oldest: Array | int = 0,
    pools: Pools | None = None,
) -> Bool[Array, "B Q S"]:
    """The keys of `largest`, or with pools all tokens of the `top_k // size` pools of largest scores.

    A pool may be chosen by queries that see its last token; the query's own token counts.
    """
    if pools is None:
        return largest(scores_BQS, visible_BQS, top_k, oldest)
    size, position_B1S = pools.size, pools.position_BS[:, None]
    last_BQS = visible_BQS & (position_B1S % size == size - 1)
    ends_BQS = largest(scores_BQS, last_BQS, top_k // size, oldest)
    chosen_BQS = ends_BQS
    for back in range(1, size):  # slots before the end; in a ring they go on at its end
        chosen_BQS |= jnp.roll(ends_BQS, -back, axis=-1)
    if pools.tail:
        count_BQ1 = jnp.sum(visible_BQS, axis=-1, keepdims=True, dtype=jnp.int32)
        chosen_BQS |= visible_BQS & (position_B1S >= count_BQ1 - count_BQ1 % size)
    return chosen_BQS & visible_BQS


def scores(
    index_q_BQIJ: Float[Array, "B Q I J"],
    index_k_BSJ: Float[Array, "B S J"],
    index_w_BQI: Float[Array, "B Q I"],
) -> Float[Array, "B Q S"]:
    """sum over the heads i of w_i relu(q_i . k_s), in at least float32 and the highest precision."""
    dtype = dispatch.accumulator_dtype(index_q_BQIJ, index_k_BSJ, index_w_BQI)
    highest = jax.lax.Precision.HIGHEST
    s_BIQS = jnp.einsum(
        "bqij,bsj->biqs", index_q_BQIJ.astype(dtype), index_k_BSJ.astype(dtype), precision=highest
    )
    weights_BQI = index_w_BQI.astype(dtype)
    return jnp.einsum("bqi,biqs->bqs", weights_BQI, jax.nn.relu(s_BIQS), precision=highest)


def largest(
    scores_BQS: Float[Array, "B Q S"],
    visible_BQS: Bool[Array, "B Q S"],
    top_k: int,
    oldest: Array | int = 0,
) -> Bool[Array, "B Q S"]:
    """The `top_k` visible keys with the largest scores; all of them if there are no more.

    Arguments:
      oldest: the slot of the oldest key in a ring; of equal scores the older key is taken.
    """
    if top_k >= scores_BQS.shape[-1]:
        return visible_BQS
    # A score of NaN is chosen, so that its key's NaN is not hidden.
    ranked_BQS = jnp.where(jnp.isnan(scores_BQS), jnp.inf, scores_BQS)
    ranked_BQS = jnp.where(visible_BQS, ranked_BQS, -jnp.inf)
    bound_BQ1 = jax.lax.top_k(ranked_BQS, top_k)[0][..., -1:]
    above_BQS = visible_BQS & (ranked_BQS > bound_BQ1)
    equal_BQS = visible_BQS & (ranked_BQS == bound_BQ1)
    places_BQ1 = top_k - jnp.sum(above_BQS, axis=-1, keepdims=True, dtype=jnp.int32)
    by_age_BQS = jnp.roll(equal_BQS, -oldest, axis=-1)
    taken_BQS = by_age_BQS & (jnp.cumsum(by_age_BQS, axis=-1, dtype=jnp.int32) <= places_BQ1)
    return above_BQS | jnp.roll(taken_BQS, oldest, axis=-1)


def chosen_keys(
    index_q_BQIJ: Float[Array, "B Q I J"],
    index_k_BSJ: Float[Array, "B S J"],
    index_w_BQI: Float[Array, "B Q I"],
    visible_BQS: Bool[Array, "B Q S"],
    *,
    top_k: int,
    oldest: Array | int = 0,
    pools: Pools | None = None,
) -> Bool[Array, "B Q S"]:
    """The keys that each query sees in `indexed_attention`, of those that are `visible`.

    Arguments:
      oldest: as in `largest`, for keys in a ring.
      pools: None where each key stands for its own token.
    """
    s_BQS = scores(index_q_BQIJ, index_k_BSJ, index_w_BQI)
    return choose(s_BQS, visible_BQS, top_k, oldest, pools)

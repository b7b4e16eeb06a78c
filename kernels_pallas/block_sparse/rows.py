"""The keys that a few queries see, selected as in the op."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas import segments
from kernels_pallas.block_sparse import blocks as blocks_


def visible_keys(
    q_BQHK: Float[Array, "B Q H K"],
    k_BTGK: Float[Array, "B T G K"],
    rows_BQ: Int[Array, "B Q"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    block: int,
    top_k: int,
) -> Bool[Array, "B H Q T"]:
    """The keys that each head's queries at the indices `rows_BQ` see in `block_sparse_attention`.

    Work and memory are Q x T and the mean keys. Two blocks whose scores differ by less than their
    rounding error may be ranked differently than in the op. Padding, or an index of -1, sees no keys.
    """
    batch, time = segment_ids_BT.shape
    first_BT = segments.first_token_index(segment_ids_BT)
    positions_BT = jnp.arange(time, dtype=jnp.int32)[None] - first_BT
    blocks = blocks_.layout(segment_ids_BT, positions_BT, time, block)

    def at_rows(x_BT):
        return jnp.take_along_axis(x_BT, jnp.maximum(rows_BQ, 0), axis=1)

    past_BQT = jnp.arange(time)[None, None] <= rows_BQ[..., None]
    same_BQT = (first_BT[:, None] == at_rows(first_BT)[..., None]) & past_BQT
    same_BQT &= (segment_ids_BT != 0)[:, None]
    own_BQT = at_rows(positions_BT)[..., None] // block == positions_BT[:, None] // block
    heads, places = q_BQHK.shape[2], blocks.start_BN.shape[1]
    if places == 0 or top_k == 1:
        seen_BQT = same_BQT & own_BQT
        return jnp.broadcast_to(seen_BQT[:, None], (batch, heads, *seen_BQT.shape[1:]))
    means_BNGK = blocks_.means(blocks_.gather(k_BTGK, blocks, block), blocks)
    s_BQHN = blocks_.scores(q_BQHK, means_BNGK, at_rows(blocks.first_BT), at_rows(blocks.last_BT))
    # Stable, so that of equal scores the earlier block comes first.
    order_BQHN = jnp.argsort(-s_BQHN, axis=-1, stable=True)
    rank_BQHN = jnp.argsort(order_BQHN, axis=-1)
    chosen_BQHN = (rank_BQHN < top_k - 1) & (s_BQHN > -jnp.inf)
    number_BT = jnp.minimum(blocks.number_BS, places - 1)
    chosen_BQHT = jax.vmap(lambda chosen, number: chosen[..., number])(chosen_BQHN, number_BT)
    chosen_BQHT &= (blocks.number_BS < places)[:, None, None]
    seen_BQHT = same_BQT[:, :, None] & (own_BQT[:, :, None] | chosen_BQHT)
    return jnp.moveaxis(seen_BQHT, 2, 1)

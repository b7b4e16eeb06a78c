"""The blocks of a packed row, their mean keys, and the scores of queries for them.

Blocks are counted from their document's first token, so packing does not change a token's block. A
query may select complete blocks of its document that end before its own block begins. All forms use
these scores, the same products in the same order, so that two scores that differ by less than their
rounding error are ranked in the same order by all forms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, segments


class Blocks(NamedTuple):
    """The complete blocks of each row, in order of time; the last of the N entries may be unused.

    Attributes:
      start_BN: index of the block's first key, S for an unused entry.
      length_BN: number of its keys: `block`, fewer if the row begins inside the block, or 0.
      number_BS: the number of each key's block, if that block is complete.
      first_BT, last_BT: a query may select the blocks first <= n < last.
    """

    start_BN: jax.Array
    length_BN: jax.Array
    number_BS: jax.Array
    first_BT: jax.Array
    last_BT: jax.Array


def layout(segment_ids_BS, positions_BS, time: int, block: int) -> Blocks:
    """The blocks of S keys; the last `time` keys belong to the queries."""
    slots = segment_ids_BS.shape[1] - time
    keys = slots + time
    places = (keys - 1) // block + (slots > 0)  # a state may begin inside a block
    document_BS = segments.first_token_index(segment_ids_BS)
    ends_BS = (positions_BS % block == block - 1) & (segment_ids_BS != 0)
    ended_BS = jnp.cumsum(ends_BS, axis=1, dtype=jnp.int32)
    number_BS = ended_BS - ends_BS
    # No query comes after a block that ends with the last key, so that block may lack an entry.
    count_N = jnp.arange(1, places + 1, dtype=jnp.int32)
    end_BN = jax.vmap(lambda ended_S: jnp.searchsorted(ended_S, count_N))(ended_BS)
    end_BN = end_BN.astype(jnp.int32)
    safe_BN = jnp.minimum(end_BN, keys - 1)
    begin_BN = jnp.maximum(safe_BN - block + 1, jnp.take_along_axis(document_BS, safe_BN, axis=1))
    there_BN = end_BN < keys
    first_BT = jnp.take_along_axis(number_BS, document_BS, axis=1)[:, slots:]
    padding_BT = segment_ids_BS[:, slots:] == 0
    return Blocks(
        jnp.where(there_BN, begin_BN, keys),
        jnp.where(there_BN, end_BN - begin_BN + 1, 0),
        number_BS,
        first_BT,
        jnp.where(padding_BT, first_BT, number_BS[:, slots:]),
    )


def gather(x_BSGK, blocks: Blocks, block: int):
    """(B, N, C, G, K): each block's keys or values, 0 after its last."""
    offset_11C = jnp.arange(block, dtype=jnp.int32)[None, None]
    index_BNC = jnp.minimum(blocks.start_BN[:, :, None] + offset_11C, x_BSGK.shape[1] - 1)
    x_BNCGK = jax.vmap(lambda x, index: x[index])(x_BSGK, index_BNC)
    there_BNC = offset_11C < blocks.length_BN[:, :, None]
    return jnp.where(there_BNC[..., None, None], x_BNCGK, 0)


def means(k_BNCGK, blocks: Blocks):
    """(B, N, G, K): mean keys, in the accumulator's dtype."""
    return mean(k_BNCGK, blocks.length_BN)


def mean(k_BNCGK, length_BN):
    """(B, N, G, K): sums over C, divided by the number of keys of the block."""
    dtype = dispatch.accumulator_dtype(k_BNCGK)
    length_BN11 = jnp.maximum(length_BN, 1).astype(dtype)[:, :, None, None]
    return jnp.sum(k_BNCGK.astype(dtype), axis=2) / length_BN11


def scores(q_BTHK, means_BNGK, first_BT, last_BT):
    """(B, T, H, N): q . mean key, -inf for the blocks that a query may not select."""
    batch, time, heads, key_size = q_BTHK.shape
    places, kv_heads = means_BNGK.shape[1:3]
    q_BTGRK = q_BTHK.reshape(batch, time, kv_heads, heads // kv_heads, key_size)
    q_BGMK = jnp.moveaxis(q_BTGRK, 1, 3).reshape(batch, kv_heads, -1, key_size)
    means_BGKN = jnp.transpose(means_BNGK, (0, 2, 3, 1))
    s_BGMN = jnp.matmul(
        q_BGMK.astype(means_BNGK.dtype), means_BGKN, precision=jax.lax.Precision.HIGHEST
    )
    s_BGRTN = s_BGMN.reshape(batch, kv_heads, heads // kv_heads, time, places)
    s_BTHN = jnp.moveaxis(s_BGRTN, 3, 1).reshape(batch, time, heads, places)
    number_N = jnp.arange(places, dtype=jnp.int32)[None, None]
    open_BTN = (number_N >= first_BT[..., None]) & (number_N < last_BT[..., None])
    return jnp.where(open_BTN[:, :, None], s_BTHN, -jnp.inf)

"""Block-sparse attention in XLA: work T * top_k * block, memory linear in T.

Attention within a query's own block is a call of the attention op, with block starts as document
boundaries. For the selected blocks, the pairs (query, block) are sorted by block and cut into tiles of
M pairs with the same block, so that each tile is one dense product: at most P / M + N tiles for P pairs
and N blocks, for any selection. A `lax.scan` runs over the tiles. Both parts are merged by their
log-sum-exps.

Two steps cost more: scoring multiplies each query with S / block mean keys, some queries at a time,
and the pairs are sorted. Neither is differentiated. One custom_vjp saves q, k, v and the pairs'
outputs and recomputes their probabilities. The gradient of a gather is a gather by the inverse
permutation, since scattering rows is slow on CPUs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, segments
from kernels_pallas.attention import AttentionState
from kernels_pallas.attention import attention as causal_attention
from kernels_pallas.block_sparse import blocks as blocks_

NEGATIVE = -1e30
RANKED_QUERIES = 256  # whose scores are in memory at once
TILE = 128  # pairs of a tile at most
STEP = 2048  # pairs of a step of the scan, over all batches and heads


class _Static(NamedTuple):
    block: int
    scale: float
    precision: object


def attention(
    q_BTHK, k_BSGK, v_BSGV, segment_ids_BS, positions_BS, *, block, top_k, scale, precision
):
    """(out_BTHV, lse_BTH); the queries are the last T of the S tokens."""
    time = q_BTHK.shape[1]
    out_BTHV, lse_BTH = _own_block(
        q_BTHK, k_BSGK, v_BSGV, segment_ids_BS, positions_BS, block, scale, precision
    )
    blocks = blocks_.layout(segment_ids_BS, positions_BS, time, block)
    others = min(top_k - 1, blocks.start_BN.shape[1])
    if others == 0:
        return out_BTHV, lse_BTH
    choice_BTHJ = _choose(*jax.lax.stop_gradient((q_BTHK, k_BSGK)), blocks, others, block)
    static = _Static(block, scale, precision)
    far_BTHJV, far_BTHJ = _chosen(q_BTHK, k_BSGK, v_BSGV, choice_BTHJ, blocks, static)
    lses_BTHJ = jnp.concatenate([lse_BTH[..., None], far_BTHJ], axis=-1)
    top_BTH1 = jax.lax.stop_gradient(jnp.max(lses_BTHJ, axis=-1, keepdims=True))
    weights_BTHJ = jnp.exp(lses_BTHJ - top_BTH1)
    sum_BTH1 = jnp.sum(weights_BTHJ, axis=-1, keepdims=True)
    weights_BTHJ = weights_BTHJ / sum_BTH1
    merged_BTHV = out_BTHV.astype(lse_BTH.dtype) * weights_BTHJ[..., :1]
    merged_BTHV += jnp.sum(far_BTHJV * weights_BTHJ[..., 1:, None], axis=-2)
    padding_BT1 = (segment_ids_BS[:, -time:] == 0)[..., None]
    lse_BTH = jnp.where(padding_BT1, NEGATIVE, (top_BTH1 + jnp.log(sum_BTH1))[..., 0])
    return merged_BTHV.astype(v_BSGV.dtype), lse_BTH


def _own_block(q_BTHK, k_BSGK, v_BSGV, segment_ids_BS, positions_BS, block, scale, precision):
    """Causal attention within blocks."""
    slots = k_BSGK.shape[1] - q_BTHK.shape[1]
    # Ids are compared only with those of neighbours, so the lowest bit of the block number is enough.
    # Doubled document numbers fit an int32; doubled ids might not.
    number_BS = segments.document_number(segment_ids_BS)
    ids_BS = jnp.where(segment_ids_BS == 0, 0, 2 * number_BS + positions_BS // block % 2)
    state = AttentionState(k_BSGK[:, :slots], v_BSGV[:, :slots], ids_BS[:, :slots])
    return causal_attention(
        q_BTHK,
        k_BSGK[:, slots:],
        v_BSGV[:, slots:],
        segment_ids=ids_BS[:, slots:],
        window=block,
        scale=scale,
        initial_state=state if slots else None,
        precision=precision,
    )


def _choose(q_BTHK, k_BSGK, blocks, others, block):
    """(B, T, H, J) int32: the blocks that each query head sees besides its own; N means none."""
    places = blocks.start_BN.shape[1]
    means_BNGK = blocks_.means(blocks_.gather(k_BSGK, blocks, block), blocks)

    def rank(queries):
        q_BCHK, first_BC, last_BC = queries
        s_BCHN = blocks_.scores(q_BCHK, means_BNGK, first_BC, last_BC)
        _, choice_BCHJ = jax.lax.top_k(s_BCHN, others)  # of equals the lower index
        open_BCJ = jnp.arange(others)[None, None] < (last_BC - first_BC)[..., None]
        return jnp.where(open_BCJ[:, :, None], choice_BCHJ.astype(jnp.int32), places)

    batch, time, heads = q_BTHK.shape[:3]
    count = -(-time // RANKED_QUERIES)
    length = -(-time // count)
    queries = jax.tree.map(
        lambda x: _chunks(x, count, length), (q_BTHK, blocks.first_BT, blocks.last_BT)
    )
    choice_NBCHJ = jax.lax.map(rank, queries)
    choice_BTHJ = jnp.moveaxis(choice_NBCHJ, 0, 1).reshape(batch, count * length, heads, others)
    return choice_BTHJ[:, :time]


def _chunks(x_BT, count, length):
    """(B, T, ...) -> (count, B, length, ...)."""
    pad = ((0, 0), (0, count * length - x_BT.shape[1])) + ((0, 0),) * (x_BT.ndim - 2)
    x = jnp.pad(x_BT, pad).reshape(x_BT.shape[0], count, length, *x_BT.shape[2:])
    return jnp.moveaxis(x, 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _chosen(q_BTHK, k_BSGK, v_BSGV, choice_BTHJ, blocks, static):
    """(out_BTHJV, lse_BTHJ) of each pair; out 0 and lse -1e30 where there is no block."""
    return _forward(q_BTHK, k_BSGK, v_BSGV, choice_BTHJ, blocks, static)[0]


def _forward(q_BTHK, k_BSGK, v_BSGV, choice_BTHJ, blocks, static):
    shape = _Pairs(q_BTHK, k_BSGK, choice_BTHJ, blocks, static)
    q_EMK = shape.queries(q_BTHK)
    k_ENKC = shape.blocks(k_BSGK, (0, 3, 1, 4, 2))
    v_ENCV = shape.blocks(v_BSGV, (0, 3, 1, 2, 4))

    def step(_, tiles):
        q_ELMK = shape.take(q_EMK, tiles.pair // shape.others)
        k_ELKC, v_ELCV = shape.take(k_ENKC, tiles.block), shape.take(v_ENCV, tiles.block)
        s_ELMC = shape.logits(q_ELMK, k_ELKC, tiles, static)
        m_ELM1 = jnp.max(s_ELMC, axis=-1, keepdims=True)
        p_ELMC = jnp.exp(s_ELMC - m_ELM1)
        l_ELM1 = jnp.sum(p_ELMC, axis=-1, keepdims=True)
        o_ELMV = shape.dot(p_ELMC.astype(v_ELCV.dtype), v_ELCV, static)
        return (), (o_ELMV / l_ELM1, (m_ELM1 + jnp.log(l_ELM1)))

    _, (o_XELMV, lse_XELM1) = jax.lax.scan(step, (), shape.tiles)
    there_EP1 = shape.there_EP[..., None]
    out_EPV = jnp.where(there_EP1, shape.by_pair(o_XELMV), 0)
    lse_EP = jnp.where(there_EP1, shape.by_pair(lse_XELM1), NEGATIVE)[..., 0]
    residuals = q_BTHK, k_BSGK, v_BSGV, choice_BTHJ, blocks, out_EPV, lse_EP
    return (shape.from_pairs(out_EPV), shape.from_pairs(lse_EP[..., None])[..., 0]), residuals


def _backward(static, residuals, cotangents):
    q_BTHK, k_BSGK, v_BSGV, choice_BTHJ, blocks, out_EPV, lse_EP = residuals
    dout_BTHJV, dlse_BTHJ = cotangents
    shape = _Pairs(q_BTHK, k_BSGK, choice_BTHJ, blocks, static)
    dtype = shape.dtype
    do_EPV = shape.pairs(dout_BTHJV).astype(dtype)
    # d logits = p * (dp - delta); delta is the row sum that softmax subtracts, minus dlse.
    delta_EP = jnp.sum(do_EPV * out_EPV, axis=-1) - shape.pairs(dlse_BTHJ[..., None])[..., 0]
    q_EMK = shape.queries(q_BTHK)
    k_ENKC, k_ENCK = (shape.blocks(k_BSGK, axes) for axes in ((0, 3, 1, 4, 2), (0, 3, 1, 2, 4)))
    v_ENVC = shape.blocks(v_BSGV, (0, 3, 1, 4, 2))
    row_E1 = jnp.arange(q_EMK.shape[0], dtype=jnp.int32)[:, None]

    def step(carry, tiles):
        dk_ENKC, dv_ENVC = carry
        q_ELMK = shape.take(q_EMK, tiles.pair // shape.others)
        do_ELMV = shape.take(do_EPV, tiles.pair).astype(v_BSGV.dtype)
        k_ELKC, v_ELVC = shape.take(k_ENKC, tiles.block), shape.take(v_ENVC, tiles.block)
        s_ELMC = shape.logits(q_ELMK, k_ELKC, tiles, static)
        # Unused rows of a tile get p = exp(s - 1e30) = 0.
        lse_ELM = jnp.where(tiles.filled, shape.take(lse_EP, tiles.pair), -NEGATIVE)
        p_ELMC = jnp.exp(s_ELMC - lse_ELM[..., None])
        dp_ELMC = shape.dot(do_ELMV, v_ELVC, static)
        ds_ELMC = p_ELMC * (dp_ELMC - shape.take(delta_EP, tiles.pair)[..., None])
        ds_ELMC, p_ELMC = ds_ELMC.astype(q_ELMK.dtype), p_ELMC.astype(do_ELMV.dtype)
        dq_ELMK = shape.dot(ds_ELMC, shape.take(k_ENCK, tiles.block), static)
        # The barrier keeps XLA from folding the transposes into slower products.
        q_ELKM, do_ELVM = jax.lax.optimization_barrier(
            (jnp.swapaxes(q_ELMK, -1, -2), jnp.swapaxes(do_ELMV, -1, -2))
        )
        dk_ENKC = dk_ENKC.at[row_E1, tiles.block].add(shape.dot(q_ELKM, ds_ELMC, static))
        dv_ENVC = dv_ENVC.at[row_E1, tiles.block].add(shape.dot(do_ELVM, p_ELMC, static))
        return (dk_ENKC, dv_ENVC), dq_ELMK

    zeros = jnp.zeros(k_ENKC.shape, dtype), jnp.zeros(v_ENVC.shape, dtype)
    (dk_ENKC, dv_ENVC), dq_XELMK = jax.lax.scan(step, zeros, shape.tiles)
    dq_EPK = jnp.where(shape.there_EP[..., None], shape.by_pair(dq_XELMK), 0)
    dq_BTHK = jnp.sum(shape.from_pairs(dq_EPK), axis=3) * static.scale
    dk_BSGK = shape.from_blocks(dk_ENKC) * static.scale
    dv_BSGV = shape.from_blocks(dv_ENVC)
    return (
        dq_BTHK.astype(q_BTHK.dtype),
        dk_BSGK.astype(k_BSGK.dtype),
        dv_BSGV.astype(v_BSGV.dtype),
        None,
        None,
    )


_chosen.defvjp(_forward, _backward)


class _Tiles(NamedTuple):
    """L tiles for each of the E = B * G rows; in the scan, leaves have a leading axis of steps.

    Attributes:
      block: (E, L) the tile's block.
      length: (E, L) its keys.
      pair: (E, L, M) the pairs in it.
      filled: (E, L, M) whether the row of the tile is used.
    """

    block: jax.Array
    length: jax.Array
    pair: jax.Array
    filled: jax.Array


class _Pairs:
    """The pairs (query, selected block) of one call, P for each of the E = B * G key/value heads.

    Pair p belongs to query row p // J of the T * R rows, and is row `place_EP[p]` of all tiles.
    """

    def __init__(self, q_BTHK, k_BSGK, choice_BTHJ, blocks, static):
        self.batch, self.time, self.heads, self.others = choice_BTHJ.shape
        self.kv_heads = k_BSGK.shape[2]
        self.layout, self.block = blocks, static.block
        self.dtype = dispatch.accumulator_dtype(q_BTHK, k_BSGK)
        choice_EP = self.pairs(choice_BTHJ[..., None])[..., 0]
        count, places = choice_EP.shape[1], blocks.start_BN.shape[1]
        tile = TILE
        while tile > 8 and tile * places > count // 2:  # otherwise many tiles would be half empty
            tile //= 2
        side = max(1, STEP // (choice_EP.shape[0] * tile))
        steps = -(-(count // tile + places) // side)
        side = -(-(count // tile + places) // steps)
        self.there_EP = choice_EP < places
        length_EN = jnp.repeat(blocks.length_BN, self.kv_heads, axis=0)
        make = functools.partial(_sort, places=places, tile=tile, tiles=steps * side)
        tiles, self.place_EP = jax.vmap(make)(choice_EP, length_EN)
        self.tiles = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(x.shape[0], steps, side, *x.shape[2:]), 1, 0), tiles
        )

    def pairs(self, x_BTHJV):
        """(B, T, H, J, V) -> (E, P, V)."""
        group = self.heads // self.kv_heads
        x = x_BTHJV.reshape(self.batch, self.time, self.kv_heads, group, *x_BTHJV.shape[3:])
        return jnp.moveaxis(x, 2, 1).reshape(self.batch * self.kv_heads, -1, x.shape[-1])

    def from_pairs(self, x_EPV):
        """(E, P, V) -> (B, T, H, J, V)."""
        size = x_EPV.shape[-1]
        shape = (self.batch, self.kv_heads, self.time, -1, self.others, size)
        x = jnp.moveaxis(x_EPV.reshape(shape), 1, 2)
        return x.reshape(self.batch, self.time, self.heads, self.others, size)

    def queries(self, x_BTHK):
        """(B, T, H, K) -> (E, T * R, K)."""
        return self.pairs(x_BTHK[:, :, :, None])

    def blocks(self, x_BSGK, axes):
        """(B, S, G, K) -> (E, N, ...), the blocks' keys in the order of `axes` of BNCGK."""
        x = jnp.transpose(blocks_.gather(x_BSGK, self.layout, self.block), axes)
        return x.reshape(self.batch * self.kv_heads, *x.shape[2:])

    def from_blocks(self, x_ENKC):
        """(E, N, K, C) -> (B, S, G, K), 0 for keys without a block."""
        _, places, size, length = x_ENKC.shape
        x = x_ENKC.reshape(self.batch, self.kv_heads, places, size, length)
        x_BFGK = jnp.transpose(x, (0, 2, 4, 1, 3)).reshape(self.batch, -1, self.kv_heads, size)
        number_BS = self.layout.number_BS
        block_BS = jnp.minimum(number_BS, places - 1)
        start_BS = jnp.take_along_axis(self.layout.start_BN, block_BS, axis=1)
        length_BS = jnp.take_along_axis(self.layout.length_BN, block_BS, axis=1)
        offset_BS = jnp.arange(number_BS.shape[1], dtype=jnp.int32)[None] - start_BS
        there_BS = (number_BS < places) & (offset_BS >= 0) & (offset_BS < length_BS)
        index_BS = block_BS * length + jnp.clip(offset_BS, 0, length - 1)
        x_BSGK = jax.vmap(lambda x, index: x[index])(x_BFGK, index_BS)
        return jnp.where(there_BS[:, :, None, None], x_BSGK, 0)

    def by_pair(self, x_XELMV):
        """(steps, E, L, M, V) -> (E, P, V)."""
        x = jnp.moveaxis(x_XELMV, 1, 0).reshape(x_XELMV.shape[1], -1, x_XELMV.shape[-1])
        return self.take(x, self.place_EP)

    def take(self, x_E, index_E):
        """x[e, index[e]] for each e."""
        return jax.vmap(lambda x, index: x[index])(x_E, index_E)

    def logits(self, q_ELMK, k_ELKC, tiles, static):
        """Scaled logits, masked where a block is shorter."""
        s_ELMC = self.dot(q_ELMK, k_ELKC, static) * static.scale
        there_ELC = jnp.arange(static.block)[None, None] < tiles.length[..., None]
        return jnp.where(there_ELC[:, :, None], s_ELMC, NEGATIVE)

    def dot(self, x_ELMK, y_ELKC, static):
        dims = (((3,), (2,)), ((0, 1), (0, 1)))
        return jax.lax.dot_general(
            x_ELMK, y_ELKC, dims, precision=static.precision, preferred_element_type=self.dtype
        )


def _sort(choice_P, length_N, *, places, tile, tiles):
    """(tiles of one row, place of each pair): the pairs sorted by block; only the last tile of a block
    may be partly filled."""
    count = choice_P.shape[0]
    order_P = jnp.argsort(choice_P, stable=True).astype(jnp.int32)
    sorted_P = choice_P[order_P]
    bounds = jnp.searchsorted(sorted_P, jnp.arange(places + 1, dtype=jnp.int32)).astype(jnp.int32)
    begin_N, size_N = bounds[:-1], bounds[1:] - bounds[:-1]
    last_tile_N = jnp.cumsum(-(-size_N // tile), dtype=jnp.int32)
    first_tile_N = last_tile_N + (-size_N // tile)

    block_L = jnp.searchsorted(last_tile_N, jnp.arange(tiles, dtype=jnp.int32), side="right")
    used_L1 = (block_L < places)[:, None]
    block_L = jnp.minimum(block_L, places - 1).astype(jnp.int32)
    row_L1 = (jnp.arange(tiles, dtype=jnp.int32) - first_tile_N[block_L])[:, None] * tile
    row_LM = row_L1 + jnp.arange(tile, dtype=jnp.int32)[None]
    filled_LM = used_L1 & (row_LM < size_N[block_L][:, None])
    pair_LM = order_P[jnp.clip(begin_N[block_L][:, None] + row_LM, 0, count - 1)]

    block_P = jnp.minimum(sorted_P, places - 1)
    place_P = first_tile_N[block_P] * tile + jnp.arange(count, dtype=jnp.int32) - begin_N[block_P]
    place_P = (
        jnp.zeros(count, jnp.int32)
        .at[order_P]
        .set(jnp.clip(place_P, 0, tiles * tile - 1), unique_indices=True)
    )
    return _Tiles(block_L, length_N[block_L], pair_LM, filled_LM), place_P

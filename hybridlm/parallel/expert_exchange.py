"""Sends tokens to devices that hold their experts, by all-to-all in rounds, and drops none.

An all-to-all has buffers of a fixed size, and all tokens may choose experts of one device. So the
devices send each other up to C rows at a time and repeat until every row is sent: C is `ROOM` times
the rows of an even load. A balanced router needs one round. The worst case takes S / ROOM rounds on S
devices, with no more memory.

The backward pass sends the tokens again, computes the experts' hidden layers again and sends the
gradients back, in the same rounds.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybridlm.parallel.axes import RULES
from hybridlm.parallel.expert_rows import Places, collect, sort_rows, spread, take_rows

(EXPERT,) = RULES["experts"]
(FSDP,) = RULES["expert_embed"]
ROOM = 1.25
MULTIPLE = 8  # rows of a tile in memory


class Exchange(NamedTuple):
    """What is the same in every round.

    Attributes:
      run: (rows sorted by expert, rows of each of this device's experts, parameters) -> rows.
      own: experts of each device.
      shards: devices, S.
      weigh_inputs: multiply what experts read by the weights, and not what they give.
    """

    run: Callable[[jax.Array, jax.Array, Mapping[str, jax.Array]], jax.Array]
    own: int
    shards: int
    weigh_inputs: bool

    def capacity(self, tokens: int, top_k: int) -> int:
        """C: the rows that a device sends to another in a round."""
        tiles = math.ceil(ROOM * tokens * top_k / self.shards / MULTIPLE)
        return min(tiles * MULTIPLE, tokens * min(top_k, self.own))


class _Routes(NamedTuple):
    """The rows of all rounds.

    Attributes:
      places: of this device's pairs, sorted by expert and therefore by device.
      begins_S, counts_S: the first row for each device, and their number.
      index_NK: the number of each pair's row among the rows for its device.
      device_NK: that device; S for pairs without an expert.
      sizes_SE: rows that this device gets from each device for each of its own experts.
      rounds: until every device has sent all of its rows.
    """

    places: Places
    begins_S: jax.Array
    counts_S: jax.Array
    index_NK: jax.Array
    device_NK: jax.Array
    sizes_SE: jax.Array
    rounds: jax.Array


class _Round(NamedTuple):
    """The rows of one round.

    Attributes:
      pairs_Y: the pair of each row that this device sends, S * C, those for device 0 first.
      slots_NK: the row of each pair; S * C for pairs of other rounds.
      here: where the rows that it gets stand among rows sorted by expert.
    """

    pairs_Y: jax.Array
    slots_NK: jax.Array
    here: Places


def exchanged(
    exchange: Exchange,
    x_ND: jax.Array,
    chosen_NK: jax.Array,
    weights_NK: jax.Array,
    parameters: Mapping[str, jax.Array],
) -> jax.Array:
    """Inside `shard_map`: the weighted sum of the experts of this device's tokens, (N, D).

    Args:
      chosen_NK: int32, of all S * `own` experts; that number and more is none.
      weights_NK: at least float32.
      parameters: of this device's experts.
    """
    return _exchanged(exchange, x_ND, chosen_NK, weights_NK, dict(parameters))


def _exchanged(exchange, x_ND, chosen_NK, weights_NK, parameters):
    routes, capacity = _route(exchange, chosen_NK)

    def add(number: jax.Array, y_ND: jax.Array) -> jax.Array:
        at = _round(exchange, routes, number, capacity)
        rows_XD = spread(_send(x_ND, at, chosen_NK.shape[1]), at.here)
        if exchange.weigh_inputs:
            weights_X1 = spread(_send_pairs(weights_NK, at), at.here)
            rows_XD = (rows_XD * weights_X1).astype(x_ND.dtype)
        outputs_XD = exchange.run(rows_XD, at.here.sizes_E, parameters)
        outputs_NKD = take_rows(_give_back(outputs_XD, at), at.slots_NK)
        if exchange.weigh_inputs:
            return y_ND + jnp.sum(outputs_NKD, axis=1, dtype=y_ND.dtype)
        return y_ND + jnp.sum(outputs_NKD * weights_NK[..., None], axis=1)

    y_ND = jnp.zeros(x_ND.shape, weights_NK.dtype)
    return jax.lax.fori_loop(0, routes.rounds, add, y_ND).astype(x_ND.dtype)


def _forward(exchange, x_ND, chosen_NK, weights_NK, parameters):
    y_ND = _exchanged(exchange, x_ND, chosen_NK, weights_NK, parameters)
    return y_ND, (x_ND, chosen_NK, weights_NK, parameters)


def _backward(exchange, residuals, dy_ND):
    x_ND, chosen_NK, weights_NK, parameters = residuals
    top_k, dtype = chosen_NK.shape[1], weights_NK.dtype
    routes, capacity = _route(exchange, chosen_NK)

    def add(number, sums):
        at = _round(exchange, routes, number, capacity)
        x_XD, dy_XD = (spread(_send(a, at, top_k), at.here) for a in (x_ND, dy_ND))
        weights_X1 = spread(_send_pairs(weights_NK, at), at.here)
        inside_X1 = (jnp.arange(x_XD.shape[0]) < jnp.sum(at.here.sizes_E))[:, None]

        def weighted(x_XD, weights_X1, parameters):
            if exchange.weigh_inputs:
                x_XD = (x_XD * weights_X1).astype(x_XD.dtype)
            outputs_XD = exchange.run(x_XD, at.here.sizes_E, parameters).astype(dtype)
            outputs_XD = jnp.where(inside_X1, outputs_XD, 0)
            return outputs_XD if exchange.weigh_inputs else outputs_XD * weights_X1

        _, pull = jax.vjp(weighted, x_XD, weights_X1, parameters)
        dx_XD, dw_X1, d_parameters = pull(dy_XD.astype(dtype))
        dx_NKD, dw_NK1 = (take_rows(_give_back(a, at), at.slots_NK) for a in (dx_XD, dw_X1))
        here = (jnp.sum(dx_NKD, axis=1, dtype=dtype), dw_NK1[..., 0], d_parameters)
        return jax.tree.map(jnp.add, sums, here)

    zeros = (jnp.zeros(x_ND.shape, dtype), jnp.zeros_like(weights_NK))
    zeros = (*zeros, jax.tree.map(jnp.zeros_like, parameters))
    dx_ND, dw_NK, d_parameters = jax.lax.fori_loop(0, routes.rounds, add, zeros)
    return dx_ND.astype(x_ND.dtype), None, dw_NK, d_parameters


_exchanged = jax.custom_vjp(_exchanged, nondiff_argnums=(0,))
_exchanged.defvjp(_forward, _backward)


def _route(exchange: Exchange, chosen_NK: jax.Array) -> tuple[_Routes, int]:
    """The rows of all rounds, and the rows of a device for another in one round."""
    own, shards = exchange.own, exchange.shards
    capacity = exchange.capacity(*chosen_NK.shape)
    places = sort_rows(chosen_NK, own * shards)
    sizes_SE = places.sizes_E.reshape(shards, own)
    counts_S = jnp.sum(sizes_SE, axis=1)
    begins_S = jnp.cumsum(counts_S) - counts_S
    device_NK = jnp.minimum(chosen_NK // own, shards)
    is_NKS = jax.nn.one_hot(device_NK, shards, dtype=bool)
    index_NK = places.places_NK - jnp.sum(jnp.where(is_NKS, begins_S[None, None], 0), axis=-1)
    return _Routes(
        places,
        begins_S,
        counts_S,
        index_NK,
        device_NK,
        _all_to_all(sizes_SE),
        _rounds(counts_S, capacity),
    ), capacity


def _rounds(counts_S: jax.Array, capacity: int) -> jax.Array:
    """Rounds that all devices take which exchange tokens or parameters with each other."""
    return jax.lax.pmax(jnp.max(-(-counts_S // capacity)), (EXPERT, FSDP))


def _round(exchange: Exchange, routes: _Routes, number: jax.Array, capacity: int) -> _Round:
    """Round `number`: rows number * C to (number + 1) * C for each device."""
    index_1C = (number * capacity + jnp.arange(capacity))[None]
    order_X = routes.places.order_X
    row_SC = jnp.minimum(routes.begins_S[:, None] + index_1C, order_X.shape[0] - 1)
    offset_NK = routes.index_NK - number * capacity
    now_NK = (offset_NK >= 0) & (offset_NK < capacity) & (routes.device_NK < exchange.shards)
    slots = exchange.shards * capacity
    slots_NK = jnp.where(now_NK, routes.device_NK * capacity + offset_NK, slots)
    # The expert of each row that this device gets; `own` for rows that nobody sent.
    ends_S1E = jnp.cumsum(routes.sizes_SE, axis=1)[:, None]
    expert_SC = jnp.sum(index_1C[..., None] >= ends_S1E, axis=-1, dtype=jnp.int32)
    here = sort_rows(expert_SC.reshape(-1, 1), exchange.own)
    return _Round(order_X[row_SC].reshape(-1), slots_NK, here)


def _send(x_ND: jax.Array, at: _Round, top_k: int) -> jax.Array:
    """The tokens that this device gets, (S * C, D)."""
    return _all_to_all(x_ND[at.pairs_Y // top_k])


def _send_pairs(values_NK: jax.Array, at: _Round) -> jax.Array:
    """What other devices have for the rows that this device gets, (S * C, 1)."""
    return _all_to_all(values_NK.reshape(-1)[at.pairs_Y][:, None])


def _give_back(rows_XD: jax.Array, at: _Round) -> jax.Array:
    """What other devices made of the rows that this device sent, (S * C, D)."""
    return _all_to_all(collect(rows_XD, at.here)[:, 0])


def _all_to_all(x_YD: jax.Array) -> jax.Array:
    """Part s of the first dimension goes to device s."""
    return jax.lax.all_to_all(x_YD, EXPERT, split_axis=0, concat_axis=0, tiled=True)

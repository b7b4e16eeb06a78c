"""Decays within a chunk, for TPU kernels: sums of log-decays that keep their digits.

A difference of cumulative sums loses digits, and its gradient loses far more. With one gate per head,
`HeadSums` are cumulative sums in two parts, of which the larger is exact. Sums over tokens are products
with triangles of ones, which a TPU computes in bfloat16: three bfloat16 parts represent a float32
number exactly, and so are their products with ones. A document boundary is a log-decay of `RESET`: the
exp of every sum across it is 0. Other sums do not contain it, or it cancels exactly (`HeadSums`), so
kernels need no mask for documents.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

RESET = -1e30
FLOOR = -256.0  # of a log-decay: the exp of a sum with it is 0 in float32, also with 127 of up to 1
ROWS = 8  # of a register


def with_resets(log_decay, resets_BT):
    """log_decay (B, T, ...) in float32, `RESET` at resets, -inf replaced by `RESET`.

    NaN and infinity stay, at resets too: `tpu_nonfinite` replaces them by `RESET`.
    """
    resets = resets_BT.reshape(resets_BT.shape + (1,) * (log_decay.ndim - 2))
    g = jnp.maximum(log_decay.astype(jnp.float32), RESET)
    return jnp.where(resets & (g < jnp.inf), RESET, g)


def grid_of(shape, axis: int):
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def square(length: int):
    """Row and column numbers of a (C, C) matrix."""
    return grid_of((length, length), 0), grid_of((length, length), 1)


def sum_products(x, ones):
    """x @ ones for a matrix of zeros and ones, exact in float32: x is split into three bfloat16 parts."""
    total = None
    for _ in range(3):
        part = x.astype(jnp.bfloat16)
        product = jax.lax.dot_general(
            part,
            ones,
            (((1,), (0,)), ((), ())),
            precision=jax.lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )
        total = product if total is None else total + product
        x = x - part.astype(jnp.float32)
    return total


def to_column(row_1N):
    """(N, 1) of a (1, N)."""
    i, j = square(row_1N.shape[1])
    return jnp.sum(jnp.where(i == j, row_1N, 0), axis=1, keepdims=True)


def to_row(column_N1):
    """(1, N) of an (N, 1)."""
    i, j = square(column_N1.shape[0])
    return jnp.sum(jnp.where(i == j, column_N1, 0), axis=0, keepdims=True)


class HeadSums(NamedTuple):
    """Cumulative sums (R, C) of the log-decays of R heads, each as `high` + `low`.

    `high` are sums of multiples of 2^-9 and at most 2^15, so they and their differences are exact. `low` are
    sums of numbers below 2^-9: their errors are about 2^-25, and absolute in a logarithm.
    """

    high_RC: jax.Array
    low_RC: jax.Array

    @classmethod
    def of(cls, g_RC) -> "HeadSums":
        g_RC = jnp.maximum(g_RC, FLOOR)
        high_RC = jnp.floor(g_RC * 512) * (1 / 512)
        l, i = square(g_RC.shape[1])
        up_to = (l <= i).astype(jnp.bfloat16)
        return cls(sum_products(high_RC, up_to), sum_products(g_RC - high_RC, up_to))


class HeadDecays(NamedTuple):
    """Decays within a chunk for one gate per head.

    Attributes:
      between_CC: from after token j to token i; 1 on the diagonal, 0 for i < j.
      in_C1: from before the chunk to after token i.
      out_1C: from after token j to the chunk's end.
      keep_11: over the whole chunk.
    """

    between_CC: jax.Array
    in_C1: jax.Array
    out_1C: jax.Array
    keep_11: jax.Array

    @classmethod
    def of(cls, sums: HeadSums, h: int) -> "HeadDecays":
        high_1C, low_1C = (x[h : h + 1] for x in sums)
        high_C1, low_C1 = to_column(high_1C), to_column(low_1C)
        i, j = square(high_C1.shape[0])
        sums_CC = (high_C1 - high_1C) + (low_C1 - low_1C)
        since_C1 = high_C1 + low_C1
        return cls(
            jnp.where(i >= j, jnp.exp(sums_CC), 0),
            jnp.exp(since_C1),
            jnp.exp((high_C1[-1:] - high_1C) + (low_C1[-1:] - low_1C)),
            jnp.exp(since_C1[-1:]),
        )

    @staticmethod
    def gradient(dbetween_CC, din_C1, dout_C1, dkeep_11):
        """Gradient (1, C) of g from those of the sums; entries of dbetween_CC on or above the diagonal
        are ignored."""
        length = dbetween_CC.shape[0]
        i, l = square(length)
        before_CC = sum_products(dbetween_CC, (i < l).astype(jnp.bfloat16))
        din_C1 = din_C1 + jnp.where(grid_of(din_C1.shape, 0) == length - 1, dkeep_11, 0)
        dg_CC = jnp.where(i >= l, before_CC + din_C1, dout_C1)
        return jnp.sum(dg_CC, axis=0, keepdims=True)


class Level(NamedTuple):
    """Level n of a recursively halved chunk: blocks of two halves of 2^n tokens.

    Products between halves need only the rows of second halves. If these fill registers, `second`
    extracts them, (C / 2, K), and `put_second` puts them back; otherwise all rows are used.
    """

    n: int

    @property
    def _taken(self) -> bool:
        return 1 << self.n >= ROWS

    def second(self, x_CK):
        if not self._taken:
            return x_CK
        size = 1 << self.n
        halves = x_CK.reshape(-1, 2, size, x_CK.shape[1])
        return halves[:, 1:].reshape(-1, x_CK.shape[1])

    def put_second(self, x_CK, second_CK):
        """x with the rows of the second halves replaced."""
        if not self._taken:
            return second_CK
        size, width = 1 << self.n, x_CK.shape[1]
        halves = x_CK.reshape(-1, 2, size, width)
        other = second_CK.reshape(-1, 1, size, width)
        return jnp.concatenate([halves[:, :1], other], axis=1).reshape(x_CK.shape)

    def pairs(self, length: int):
        """For `second` rows i and all columns j < i: whether i and j are in different halves of one
        block of this level."""
        i, j = (self.second(x) for x in square(length))
        different = i ^ j
        return (different >= 1 << self.n) & (different < 2 << self.n) & (i > j)


def levels(length: int) -> int:
    return int(math.log2(length))


class ChannelDecays:
    """Decays within a chunk for one gate per channel, level by level of a recursively halved chunk.

    If j and i are in the two halves of a block of 2b tokens, the decay between them is that from j to
    the middle times that from the middle to i, both exp of sums <= 0. `factors[n]`, b = 2^n, has for
    each token the one of its half. `in_CK` is the decay from before the chunk to after a token,
    `out_CK` that from after it to the chunk's end.
    """

    def __init__(self, g_CK, keep):
        """`keep(n, factor)` stores the factors of level n."""
        up_CK, on_CK, total_CK = g_CK, jnp.zeros_like(g_CK), g_CK
        for n in range(levels(g_CK.shape[0])):
            size = 1 << n
            second = _in_second_half(g_CK.shape, size)
            keep(n, jnp.exp(jnp.where(second, up_CK, on_CK)))
            other_CK = _swapped(total_CK, size)
            up_CK = jnp.where(second, up_CK + other_CK, up_CK)
            on_CK = jnp.where(second, on_CK, on_CK + other_CK)
            total_CK = total_CK + other_CK
        self.in_CK, self.out_CK = jnp.exp(up_CK), jnp.exp(on_CK)

    @staticmethod
    def gradient(dfactors, din_CK, dout_CK):
        """Gradient of g from those of the sums in the exponents; `dfactors(n)` of factor n."""
        dup_CK, don_CK, dtotal_CK = din_CK, dout_CK, jnp.zeros_like(din_CK)
        for n in reversed(range(levels(din_CK.shape[0]))):
            size = 1 << n
            second = _in_second_half(din_CK.shape, size)
            dother_CK = jnp.where(second, dup_CK, don_CK) + dtotal_CK
            dtotal_CK = dtotal_CK + _swapped(dother_CK, size)
            dfactor_CK = dfactors(n)
            dup_CK = jnp.where(second, dup_CK + dfactor_CK, dup_CK)
            don_CK = jnp.where(second, don_CK, don_CK + dfactor_CK)
        return dup_CK + dtotal_CK


def _in_second_half(shape, size: int):
    return (grid_of(shape, 0) & size) != 0


def _swapped(x_CK, size: int):
    """Swaps the halves of every block of 2 * size rows."""
    length, width = x_CK.shape
    if size < ROWS:
        x_N8K = x_CK.reshape(length // ROWS, ROWS, width)
        down, up = (pltpu.roll(x_N8K, by % ROWS, 1) for by in (size, -size))
        second = (grid_of(x_N8K.shape, 1) & size) != 0
        return jnp.where(second, down, up).reshape(length, width)
    halves = x_CK.reshape(length // (2 * size), 2, size, width)
    return jnp.concatenate([halves[:, 1:], halves[:, :1]], axis=1).reshape(length, width)

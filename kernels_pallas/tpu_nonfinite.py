"""NaN and infinity in the blocks of a TPU kernel: found by one look at each, replaced in VMEM.

`kernels_pallas.nonfinite` masks whole arrays, which reads and writes them in HBM once more. A kernel of a
recurrence looks at its blocks, which it reads anyway, replaces what is not finite in those that hold any,
and reports the tokens. XLA then marks the outputs as for all forms, in the operation that reads them.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.tpu_decays import RESET, grid_of

_TOKENS = 16  # that are replaced at a time: a tile of bfloat16
_ROWS, _LANES = 8, 128
# Of a word of 32 bits: the exponents, one at the last place of each, and the signs.
_WORDS = {
    jnp.dtype(jnp.float32): (0x7F800000, 0x00800000, -(2**31)),
    jnp.dtype(jnp.bfloat16): (0x7F807F80, 0x00800080, -0x7FFF8000),
    jnp.dtype(jnp.float16): (0x7C007C00, 0x04000400, -0x7FFF8000),
}


def any_nonfinite(*blocks):
    """Whether any of some matrices, or references to them, holds NaN or infinity, whose exponents are all
    ones: one more carries into the sign's place, in both halves of a word of two numbers at once."""
    marks = {}
    for x in blocks:
        exponents, one, signs = _WORDS[x.dtype]
        for part in _parts(x):  # a few registers at a time
            carried = (pltpu.bitcast(part, jnp.int32) & exponents) + one
            key = carried.shape, signs
            marks[key] = marks[key] | carried if key in marks else carried
    found = [jnp.max(jnp.where((m & key[1]) != 0, 1.0, 0.0)) for key, m in marks.items()]
    return sum(found[1:], found[0]) > 0


def _parts(x):
    """The matrix in parts of four registers, as far as its sizes are multiples of theirs."""
    rows = math.gcd(x.shape[0], 4 * _ROWS * 4 // x.dtype.itemsize)
    lanes = _LANES if x.shape[1] % _LANES == 0 else x.shape[1]
    for row in range(0, x.shape[0], rows):
        for lane in range(0, x.shape[1], lanes):
            yield x[row : row + rows, lane : lane + lanes]


def contain_forward(blocks, rows, gates):
    """Forward: `replace` in the inputs, if one look finds a number that is not finite."""
    wanted = any_nonfinite(*(x.at[0] for x in blocks), *(x[0, 0, 0] for x in rows))
    return replace(wanted, blocks, rows, gates)


def contain_backward(do_ref, marks_ref, blocks, rows, gates):
    """Backward: replaces as forward in the inputs, by its marks, and in the cotangent of the output.

    Returns the marks of the cotangent, as `replace`.
    """
    wanted = any_nonfinite(do_ref.at[0], marks_ref[0, 0, 0])
    marks_1C = replace(wanted, [do_ref])
    replace(wanted, blocks, rows, gates)
    return marks_1C


def replace(wanted, blocks, rows=(), gates=None):
    """Replaces what is not finite in a step's blocks, in place, if that is wanted; the blocks are copies.

    Arguments:
      blocks: references (1, C, width), tokens by channels.
      rows: references (1, 1, 1, R, C), tokens along lanes.
      gates: the one of these that has log-decays: there a bad one becomes `RESET`, elsewhere 0.

    Returns (1, C): NaN at tokens where a number was replaced, else 0.
    """
    length = blocks[0].shape[1]

    def replaced(ref, place):
        """Marks of (rows of tokens, channels), or of (R, C)."""
        x = ref[place].astype(jnp.float32)
        finite = jnp.abs(x) < jnp.inf
        ref[place] = jnp.where(finite, x, RESET if ref is gates else 0).astype(ref.dtype)
        return jnp.where(finite, 0.0, 1.0)

    def row_by_row(_, bad_1C):
        for ref in rows:
            bad_RC = replaced(ref, (0, 0, 0))
            bad_1C = jnp.maximum(bad_1C, jnp.max(bad_RC, axis=0, keepdims=True))
        return bad_1C

    def some_tokens(step, bad_1C):
        start = pl.multiple_of(step * _TOKENS, _TOKENS)
        for ref in blocks:
            bad = replaced(ref, (0, pl.ds(start, _TOKENS)))
            bad = jnp.max(bad, axis=1, keepdims=True)
            shape = _TOKENS, length
            own = grid_of(shape, 1) == start + grid_of(shape, 0)
            bad = jnp.max(jnp.where(own, bad, 0.0), axis=0, keepdims=True)
            bad_1C = jnp.maximum(bad_1C, bad)
        return bad_1C

    bad_1C = jnp.zeros((1, length), jnp.float32)
    if rows:
        bad_1C = jax.lax.fori_loop(0, jnp.where(wanted, 1, 0), row_by_row, bad_1C)
    steps = jnp.where(wanted, length // _TOKENS, 0)
    bad_1C = jax.lax.fori_loop(0, steps, some_tokens, bad_1C)
    return jnp.where(bad_1C > 0, jnp.nan, 0.0)

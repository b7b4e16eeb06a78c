"""NaN and infinity in the TPU attention kernels: contained in VMEM, without a copy in HBM.

The other forms mask their inputs and outputs (`kernels_pallas.nonfinite`), which reads and writes each
of them once more. Here the forward kernel looks at each block once. A query with a number that is not
finite becomes NaN, and so does the key of a token whose key or value has one, while its value becomes
0. The logits of a pair that does not see each other are masked by a selection, not by a product: so
NaN reaches all outputs that see it, and no others. The backward kernel replaces such numbers by 0 in
the key/value heads that have any (`unclean`); queries whose lse or delta is not finite take no part.

Heads are apart: a head whose queries, keys and values are finite has finite outputs.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.attention import intervals

ROWS = 64  # of keys or values marked at once: with heads of 256, more do not fit the registers
RAISED = 2e30  # lse of a query whose cotangent is not finite; that of padding is 1e30


def softmax_gradient(delta_BTH, lse_BTH, sinks_H, start_BT):
    """`intervals.softmax_gradient` where delta or lse may not be finite: those queries take no part (p = 0),
    and if the reason is a cotangent, the lse is RAISED, which makes their dq NaN."""
    finite_BTH, spoilt_BTH = jnp.isfinite(delta_BTH), ~jnp.isfinite(lse_BTH)
    lse_BTH = jnp.where(finite_BTH, lse_BTH, RAISED)
    lse_BTH = jnp.where(spoilt_BTH, -intervals.NEGATIVE, lse_BTH)
    delta_BTH = jnp.where(finite_BTH, delta_BTH, 0)
    return intervals.softmax_gradient(delta_BTH, lse_BTH, sinks_H, start_BT)


def mark(plan, block, q_ref, k_ref, vt_ref, unclean_ref, found_ref) -> None:
    """Marks a grid step's queries and keys, in place; the blocks are copies.

    Arguments:
      unclean_ref: (1, 1, 8, 128), of a key/value head; becomes 1 if it has any such number.
      found_ref: (1,), in SMEM; 1 if the head's keys up to this block have any.
    """
    head = pl.program_id(3)

    @pl.when((block == 0) & (head == 0))
    def _():
        unclean_ref[...] = jnp.zeros_like(unclean_ref)
        found_ref[0] = 0

    def look_at(tokens):
        @pl.when(_any_nonfinite(k_ref[0, 0, tokens]) | _any_nonfinite(vt_ref[0, 0, :, tokens]))
        def _():
            found_ref[0] = 1

    # Keys of earlier blocks have been looked at, those of later ones are not seen yet.
    own = slice(plan.front, plan.front + plan.block)
    if plan.reach is None:
        own = pl.ds(pl.multiple_of(plan.front + block * plan.block, plan.block), plan.block)

    if not plan.rectangle:

        @pl.when(head == 0)
        def _():
            look_at(own)

    if plan.front:

        @pl.when((block == 0) & (head == 0))
        def _():
            if plan.reach is None:
                _for_blocks(True, plan.front, plan.block, look_at)
            else:
                look_at(slice(0, plan.front))

    def keys(tokens):
        unclean_ref[...] = jnp.ones_like(unclean_ref)
        row = jnp.zeros((1, tokens.size))
        for rows in _pieces(vt_ref.shape[2]):
            vt = vt_ref[0, 0, rows, tokens].astype(jnp.float32)
            row = jnp.maximum(row, _bad(vt, axis=0))
            vt_ref[0, 0, rows, tokens] = jnp.where(_finite(vt), vt, 0).astype(vt_ref.dtype)
        column = jnp.transpose(jnp.broadcast_to(row, (tokens.size, tokens.size)))[:, :1]
        for rows in _pieces(tokens.size):
            own = pl.ds(tokens.start + rows.start, rows.stop - rows.start)
            k = k_ref[0, 0, own].astype(jnp.float32)
            bad = jnp.maximum(_bad(k, axis=1), column[rows])
            k_ref[0, 0, own] = jnp.where(bad > 0, jnp.nan, k).astype(k_ref.dtype)

    def queries(tokens):
        unclean_ref[...] = jnp.ones_like(unclean_ref)
        q = q_ref[0, 0, tokens].astype(jnp.float32)
        q_ref[0, 0, tokens] = jnp.where(_bad(q, axis=1) > 0, jnp.nan, q).astype(q_ref.dtype)

    _for_slices(found_ref[0] > 0, k_ref.shape[2], keys)
    _for_slices(_any_nonfinite(q_ref[0, 0]), q_ref.shape[2], queries)


def clean(wanted, ref) -> None:
    """Replaces what is not finite in a block (1, 1, ...) by 0, in place, if that is wanted."""
    by_columns = ref.shape[3] > ref.shape[2]

    def part(number):
        place = (0, 0, slice(None), number) if by_columns else (0, 0, number)
        x = ref[place].astype(jnp.float32)
        ref[place] = jnp.where(_finite(x), x, 0).astype(ref.dtype)

    _for_slices(wanted, max(ref.shape[2:]), part)


def _for_slices(wanted, size: int, body) -> None:
    """`body(slice)` for slices of at most 128, so that registers hold one; for none if not wanted."""
    _for_blocks(wanted, size, math.gcd(size, 128), body)


def _pieces(size: int) -> list[slice]:
    """Slices of at most ROWS rows."""
    step = math.gcd(size, ROWS)
    return [slice(at, at + step) for at in range(0, size, step)]


def _for_blocks(wanted, size: int, step: int, body) -> None:
    def one(index, carry):
        body(pl.ds(pl.multiple_of(index * step, step), step))
        return carry

    jax.lax.fori_loop(0, jnp.where(wanted, size // step, 0), one, 0)


def _any_nonfinite(x):
    """Whether a matrix of bfloat16 or float32 holds NaN or infinity, whose exponents are all ones: one
    more carries into the sign's place, in both halves of a word of bfloat16 at once."""
    narrow = x.dtype.itemsize == 2
    exponents, one, signs = (
        (0x7F807F80, 0x00800080, -0x7FFF8000) if narrow else (0x7F800000, 0x00800000, -(2**31))
    )
    words = pltpu.bitcast(x, jnp.int32)
    carried = (words & exponents) + one
    while carried.shape[0] % 16 == 0:
        half = carried.shape[0] // 2
        carried = carried[:half] | carried[half:]
    return jnp.max(jnp.where((carried & signs) != 0, 1.0, 0.0)) > 0


def _bad(x, axis: int):
    """1 where a number along the axis is not finite, else 0."""
    return jnp.max(jnp.where(_finite(x), 0.0, 1.0), axis=axis, keepdims=True)


def _finite(x):
    return jnp.abs(x) < jnp.inf

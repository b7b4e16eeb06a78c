"""The linear recurrence as a Pallas TPU kernel: one pass over memory, forward and backward.

The grid is (batch, channel blocks, time blocks); time blocks are visited in order, with h carried in
vector memory. A vector register holds 8 tokens of 128 channels. Three steps of doubling combine the 8
tokens (h = a h' + b composes), and one multiply-add with the carried h gives all of them: about six
bundles per register, less than reading a and b and writing h cost. Decays are only multiplied, so
gates of 0 and 1 are exact.

Backward, c_t = a_t g_t obeys c_t = a_t c_{t+1} + a_t dh_t, the same recurrence in reverse, and
g_t = dh_t + c_{t+1} is the cotangent of b_t.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import mxu
from kernels_pallas.linear_recurrence.blocks import MAX_SLOPE, PADDING, STARTS, marks, whole

TIME_BLOCK = 512  # tokens of a grid step
CHANNEL_BLOCK = 512
ROWS = 8  # tokens in a vector register
LANES = 128
STEP = 16  # tokens of a loop step: a tile of bfloat16
#: Channels that the fused gate's backward pass processes at once up to v5p, where more would spill
#: registers. On later chips it processes a whole block at once, in fewer bundles.
CHANNELS_AT_ONCE = 256


def recurrence(gated, a_BTD, b_BTD, call):
    """h_BTD float32, as the other forms; float32 or bfloat16 inputs.

    Where `gated`, the kernel computes a_t = exp(log_a_t) and b_t = sqrt(1 - a_t^2) x_t from
    a_BTD = log_a and b_BTD = x. At a document's start b_t = x_t: no state is carried, so the input
    is not damped.
    """
    time, channels = a_BTD.shape[1:]
    tokens = STEP if time <= TIME_BLOCK else TIME_BLOCK
    a_BTD, b_BTD, marks_BT, h_BD = whole(a_BTD, b_BTD, marks(call), call.state_B, tokens, LANES)
    marks_B1T = marks_BT.astype(jnp.float32)[:, None]
    h_BTD = _recurrence(gated, call.interpret, a_BTD, b_BTD, marks_B1T, h_BD)
    return h_BTD[:, :time, :channels]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(gated, interpret, a_BTD, b_BTD, marks_B1T, h_BD):
    return _forward(gated, interpret, a_BTD, b_BTD, marks_B1T, h_BD)[0]


def _forward(gated, interpret, a_BTD, b_BTD, marks_B1T, h_BD):
    call, block, marks, row, _, carry = _plan("forward", gated, a_BTD, reverse=False)
    h_BTD = call(
        functools.partial(_forward_kernel, gated),
        in_specs=[block, block, marks, row],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(a_BTD.shape, jnp.float32),
        scratch_shapes=carry,
        interpret=interpret,
    )(a_BTD, b_BTD, marks_B1T, h_BD[:, None])
    h_BTD = checkpoint_name(h_BTD, "linear_recurrence_h")
    return h_BTD, (a_BTD, b_BTD, marks_B1T, h_BD, h_BTD)


def _backward(gated, interpret, residuals, dh_BTD):
    a_BTD, b_BTD, marks_B1T, h_BD, h_BTD = residuals
    call, block, marks, row, before, carry = _plan("backward", gated, a_BTD, reverse=True)
    # Only the fused gate needs its input in the backward pass.
    inputs = [b_BTD] if gated else []
    da_BTD, db_BTD, dh_B1D = call(
        functools.partial(_backward_kernel, gated),
        in_specs=[block] * (3 + len(inputs)) + [before, marks, row],
        out_specs=[block, block, row],
        out_shape=[
            jax.ShapeDtypeStruct(a_BTD.shape, a_BTD.dtype),
            jax.ShapeDtypeStruct(b_BTD.shape, b_BTD.dtype),
            jax.ShapeDtypeStruct((h_BD.shape[0], 1, h_BD.shape[1]), jnp.float32),
        ],
        scratch_shapes=carry,
        interpret=interpret,
    )(a_BTD, *inputs, h_BTD, dh_BTD, h_BTD, marks_B1T, h_BD[:, None])
    return da_BTD, db_BTD, jnp.zeros_like(marks_B1T), dh_B1D[:, 0]


_recurrence.defvjp(_forward, _backward)


def _plan(direction, gated, a_BTD, reverse):
    """(pallas_call, block specs of tokens, marks, a row and the 8 tokens before, scratch)."""
    batch, time, channels = a_BTD.shape
    width = next(w for w in (CHANNEL_BLOCK, 256, LANES) if channels % w == 0)
    length = min(time, TIME_BLOCK)
    steps = time // length
    name = f"{'gated' if gated else 'linear'}_recurrence_{direction}"
    call = functools.partial(
        pl.pallas_call,
        grid=(batch, channels // width, steps),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        name=name,
    )

    def at(t):
        return steps - 1 - t if reverse else t

    block = pl.BlockSpec((1, length, width), lambda b, d, t: (b, at(t), d))
    marks = pl.BlockSpec((1, 1, length), lambda b, d, t: (b, 0, at(t)))
    row = pl.BlockSpec((1, 1, width), lambda b, d, t: (b, 0, d))
    groups = length // ROWS
    before = pl.BlockSpec(
        (1, ROWS, width), lambda b, d, t: (b, jnp.maximum(at(t) * groups - 1, 0), d)
    )
    scratch = [pltpu.VMEM((ROWS, width), jnp.float32), pltpu.VMEM((length, LANES), jnp.float32)]
    return call, block, marks, row, before, scratch


def _forward_kernel(gated, a_ref, b_ref, marks_ref, h0_ref, h_ref, carry_ref, marks_scratch):
    @pl.when(pl.program_id(2) == 0)
    def _():
        carry_ref[...] = jnp.broadcast_to(h0_ref[0], carry_ref.shape)

    marks_scratch[...] = _column(marks_ref[0])

    def step(i, carry):
        start = pl.multiple_of(i * STEP, STEP)
        marks = marks_scratch[pl.ds(start, STEP)]
        a, b = (ref[0, pl.ds(start, STEP)].astype(jnp.float32) for ref in (a_ref, b_ref))
        for part in _groups():
            starts, padding = _marked(marks[part], a.shape[1])
            a_8D, b_8D = a[part], b[part]
            if gated:
                a_8D, scale, _ = _gate(a_8D, starts)
                b_8D = scale * b_8D
            a_8D = jnp.where(starts | padding, 0, a_8D)
            b_8D = jnp.where(padding, 0, b_8D)
            decay, h_8D = _compose(a_8D, b_8D, reverse=False)
            h_8D = decay * carry + h_8D
            h_ref[0, pl.ds(start + part.start, ROWS)] = h_8D
            carry = jnp.broadcast_to(h_8D[ROWS - 1 :], h_8D.shape)
        return carry

    carry_ref[...] = jax.lax.fori_loop(0, a_ref.shape[1] // STEP, step, carry_ref[...])


def _backward_kernel(gated, a_ref, *refs):
    x_ref, refs = (refs[0], refs[1:]) if gated else (None, refs)
    h_ref, dh_ref, before_ref, marks_ref, h0_ref = refs[:5]
    da_ref, db_ref, dh0_ref, carry_ref, marks_scratch = refs[5:]
    steps = a_ref.shape[1] // STEP
    first_block = pl.program_id(2) == pl.num_programs(2) - 1

    @pl.when(pl.program_id(2) == 0)
    def _():
        carry_ref[...] = jnp.zeros_like(carry_ref)

    marks_scratch[...] = _column(marks_ref[0])
    h_before_block = jnp.where(first_block, h0_ref[0], before_ref[0, ROWS - 1 :])

    whole_block = carry_ref.shape[1]
    width = min(whole_block, CHANNELS_AT_ONCE) if gated and mxu.tiles() == 1 else whole_block
    row = jax.lax.broadcasted_iota(jnp.int32, (ROWS, width), 0)

    # To avoid spills, values are kept in memory rather than in registers: the carry, inputs until their
    # 8 tokens are processed, and gradients narrower than float32, which are stored 8 tokens at a time.
    store_groups = da_ref.dtype.itemsize < 4

    def step(i, _):
        start = pl.multiple_of((steps - 1 - i) * STEP, STEP)
        marks = marks_scratch[pl.ds(start, STEP)]
        for columns in _slices(whole_block, width):
            carry_ref[:, columns] = channels(start, marks, columns, carry_ref[:, columns])
        return 0

    def channels(start, marks, columns, carry):
        tokens = pl.ds(start, STEP)
        h, dh = (ref[0, tokens, columns] for ref in (h_ref, dh_ref))
        before = pl.multiple_of(jnp.maximum(start - ROWS, 0), ROWS)
        earlier = h_ref[0, pl.ds(before, ROWS), columns]
        h_before = jnp.where(start == 0, h_before_block[:, columns], earlier[ROWS - 1 :])
        gradients = []
        for part in reversed(_groups()):
            group = pl.ds(pl.multiple_of(start + part.start, ROWS), ROWS)
            starts, padding = _marked(marks[part], width)
            cut = starts | padding
            a_8D, dh_8D = a_ref[0, group, columns].astype(jnp.float32), dh[part]
            if gated:
                x_8D = x_ref[0, group, columns].astype(jnp.float32)
                a_8D, scale, slope = _gate(a_8D, starts)
            kept_8D = jnp.where(cut, 0, a_8D)
            decay, c_8D = _compose(kept_8D, kept_8D * dh_8D, reverse=True)
            c_8D = decay * carry + c_8D
            g_8D = dh_8D + jnp.where(row == ROWS - 1, carry, _shifted(c_8D, -1))
            carry = jnp.broadcast_to(c_8D[:1], c_8D.shape)
            first = h_before if part.start == 0 else h[part.start - 1 : part.start]
            h_before_8D = jnp.where(row == 0, first, _shifted(h[part], 1))
            da_8D = jnp.where(cut, 0, g_8D * h_before_8D)
            db_8D = jnp.where(padding, 0, g_8D)
            if gated:
                da_8D = a_8D * da_8D + slope * jnp.where(padding, 0, g_8D * x_8D)
                db_8D = scale * db_8D
            if store_groups:
                da_ref[0, group, columns] = da_8D.astype(da_ref.dtype)
                db_ref[0, group, columns] = db_8D.astype(db_ref.dtype)
            else:
                gradients.append((da_8D, db_8D))
        if gradients:
            for ref, parts in zip((da_ref, db_ref), zip(*reversed(gradients))):
                ref[0, tokens, columns] = jnp.concatenate(parts).astype(ref.dtype)
        return carry

    jax.lax.fori_loop(0, steps, step, 0)

    @pl.when(first_block)
    def _():
        dh0_ref[0] = carry_ref[:1]


def _groups():
    return _slices(STEP, ROWS)


def _slices(whole: int, length: int):
    return [slice(i, i + length) for i in range(0, whole, length)]


def _column(marks_1L):
    """(L, 128): the mark of each token in all lanes of its row."""
    return jnp.broadcast_to(marks_1L, (LANES, marks_1L.shape[1])).T


def _marked(marks_8, width):
    """(starts, padding), each (8, width)."""
    marks_8D = jnp.concatenate([marks_8] * (width // LANES), axis=1)
    return marks_8D == STARTS, marks_8D == PADDING


def _gate(log_a, starts):
    """a, the factor sqrt(1 - a^2) of x and its derivative with respect to log_a, bounded.

    1 - exp(y) = 2 t / (1 + t) with t = tanh(-y / 2) has no cancellation near y = 0.
    """
    a = jnp.exp(log_a)
    tanh = jnp.tanh(-log_a)
    one_minus_a2 = 2 * tanh / (1 + tanh)
    slope = jnp.minimum(0.5 * jax.lax.rsqrt(jnp.maximum(one_minus_a2, 1e-30)), MAX_SLOPE)
    return a, jnp.where(starts, 1, jnp.sqrt(one_minus_a2)), jnp.where(starts, 0, -2 * a * a * slope)


def _compose(a_8D, b_8D, reverse):
    """(A, B) for each of 8 tokens, with h = A h_before_all + B; in reverse, from the last token."""
    row = jax.lax.broadcasted_iota(jnp.int32, a_8D.shape, 0)
    for distance in (1, 2, 4):
        if reverse:
            there, shift = row < ROWS - distance, -distance
        else:
            there, shift = row >= distance, distance
        b_8D = b_8D + a_8D * jnp.where(there, _shifted(b_8D, shift), 0)
        a_8D = a_8D * jnp.where(there, _shifted(a_8D, shift), 1)
    return a_8D, b_8D


def _shifted(x_8D, by):
    """Row i becomes row i + by, cyclically."""
    return pltpu.roll(x_8D, by % ROWS, 0)

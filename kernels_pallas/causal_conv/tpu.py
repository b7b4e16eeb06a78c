"""The causal convolution as a Pallas TPU kernel: one pass over memory, forward and backward.

The grid is (channel blocks, batch, time blocks). A vector register holds 8 tokens of 128 channels; a
tap shifts it by up to 7 tokens, so each register needs the one before it (backward also the one after).
Those of the neighbouring time blocks are passed as blocks of 16 tokens, a tile of bfloat16, so that time
blocks do not depend on each other. Inputs are read, and results written, in their own dtype; XLA would
write copies of all tokens in float32.

The sums before an activation stay in registers: backward computes them again from the inputs that the
gradient of the filter reads anyway, and from those of the 8 tokens after its block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import dispatch, mxu
from kernels_pallas.causal_conv import chunked
from kernels_pallas.causal_conv.activation import activated, of_sums
from kernels_pallas.causal_conv.reach import reach

TIME_BLOCK = 512  # tokens of a grid step
CHANNEL_BLOCKS = dict(forward=(512, 256, 128), backward=(256, 128))  # wider ones would spill
ROWS = 8  # tokens in a vector register
LANES = 128
STEP = 16  # tokens of a loop step: a tile of bfloat16
PADDING = -1.0  # reach of tokens that are not there


def causal_conv(x_BTD, state_BSD, kernel_WD, bias_D, segment_ids_BS, activation):
    """y in x's dtype, as the other forms; float32 or bfloat16."""
    batch, time, channels = x_BTD.shape
    slots = kernel_WD.shape[0] - 1
    _, reach_BT1 = reach(segment_ids_BS, slots)
    length = STEP if time <= TIME_BLOCK else TIME_BLOCK
    more_time, more_channels = -time % length, -channels % LANES
    x_BTD = jnp.pad(x_BTD, ((0, 0), (0, more_time), (0, more_channels)))
    # The state stands at the end of the 16 tokens before the first.
    state_BSD = jnp.pad(state_BSD, ((0, 0), (STEP - slots, 0), (0, more_channels)))
    reach_B1T = jnp.pad(
        reach_BT1[:, None, :, 0].astype(jnp.float32),
        ((0, 0), (0, 0), (0, more_time)),
        constant_values=PADDING,
    )
    kernel_WD, bias_1D = (
        jnp.pad(p.astype(jnp.float32), ((0, 0), (0, more_channels)))
        for p in (kernel_WD, bias_D[None])
    )
    static = dispatch.target().interpret, activation
    y_BTD = _conv(static, x_BTD, state_BSD.astype(x_BTD.dtype), kernel_WD, bias_1D, reach_B1T)
    return y_BTD[:, :time, :channels]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(static, x_BTD, state_BSD, kernel_WD, bias_1D, reach_B1T):
    return _forward(static, x_BTD, state_BSD, kernel_WD, bias_1D, reach_B1T)[0]


def _forward(static, x_BTD, state_BSD, kernel_WD, bias_1D, reach_B1T):
    interpret, activation = static
    call, at = _plan("forward", x_BTD, activation)
    y_BTD = call(
        functools.partial(_forward_kernel, kernel_WD.shape[0], activation),
        in_specs=[at.block, at.before, at.first, at.filter(kernel_WD), at.row, at.reach],
        out_specs=at.block,
        out_shape=jax.ShapeDtypeStruct(x_BTD.shape, x_BTD.dtype),
        scratch_shapes=[at.column()],
        interpret=interpret,
    )(x_BTD, x_BTD, state_BSD, kernel_WD, bias_1D, reach_B1T)
    return y_BTD, (x_BTD, state_BSD, kernel_WD, bias_1D, reach_B1T)


def _backward(static, residuals, dy_BTD):
    interpret, activation = static
    x_BTD, state_BSD, kernel_WD, bias_1D, reach_B1T = residuals
    call, at = _plan("backward", x_BTD, activation)
    width, channels = kernel_WD.shape
    for_sums = () if activation is None else (x_BTD, bias_1D)
    dx_BTD, dkernel_WD, dbias_1D = call(
        functools.partial(_backward_kernel, width, activation),
        in_specs=[at.block, at.before, at.first, at.block, at.after]
        + [at.filter(kernel_WD), at.reach, at.reach_after]
        + [at.after, at.row][: len(for_sums)],
        out_specs=[at.block, at.filter(kernel_WD), at.row],
        out_shape=[
            jax.ShapeDtypeStruct(x_BTD.shape, x_BTD.dtype),
            jax.ShapeDtypeStruct(kernel_WD.shape, jnp.float32),
            jax.ShapeDtypeStruct((1, channels), jnp.float32),
        ],
        scratch_shapes=[at.column(STEP), pltpu.VMEM((width + 1, ROWS, at.width), jnp.float32)],
        interpret=interpret,
    )(x_BTD, x_BTD, state_BSD, dy_BTD, dy_BTD, kernel_WD, reach_B1T, reach_B1T, *for_sums)
    dstate_BSD = _state_gradient(activation, residuals, dy_BTD).astype(state_BSD.dtype)
    return dx_BTD, dstate_BSD, dkernel_WD, dbias_1D, jnp.zeros_like(reach_B1T)


_conv.defvjp(_forward, _backward)


def _state_gradient(activation, residuals, dy_BTD):
    """(B, 16, D) float32, from the first W - 1 tokens."""
    x_BTD, state_BSD, kernel_WD, bias_1D, reach_B1T = residuals
    width = kernel_WD.shape[0]
    dy_BSD = dy_BTD[:, :STEP].astype(jnp.float32)
    reach_BS1 = reach_B1T[:, 0, :STEP, None]
    if activation is not None:
        x_BPD = jnp.concatenate([state_BSD[:, STEP - width + 1 :], x_BTD[:, :STEP]], axis=1)
        sums_BSD = chunked.sums(x_BPD, kernel_WD, bias_1D[0], reach_BS1 >= 0, reach_BS1)
        dy_BSD = of_sums(sums_BSD, dy_BSD, activation)
    rows = []
    for back in range(width - 1, 0, -1):  # tokens before the first
        terms = [
            jnp.where(
                tap <= reach_BS1[:, tap - back], kernel_WD[tap][None] * dy_BSD[:, tap - back], 0
            )
            for tap in range(back, width)
        ]
        rows.append(sum(terms))
    none = jnp.zeros((dy_BTD.shape[0], STEP - len(rows), dy_BTD.shape[2]), jnp.float32)
    return jnp.concatenate([none, *(row[:, None] for row in rows)], axis=1)


class _At:
    """The blocks of a grid step (d, b, t) over channels, rows and time."""

    def __init__(self, length: int, width: int, steps: int):
        tiles, self.width, self.length = length // STEP, width, length
        last = steps * tiles - 1
        self.block = pl.BlockSpec((1, length, width), lambda d, b, t: (b, t, d))
        self.before = pl.BlockSpec(
            (1, STEP, width), lambda d, b, t: (b, jnp.maximum(t * tiles - 1, 0), d)
        )
        self.after = pl.BlockSpec(
            (1, STEP, width), lambda d, b, t: (b, jnp.minimum((t + 1) * tiles, last), d)
        )
        self.first = pl.BlockSpec((1, STEP, width), lambda d, b, t: (b, 0, d))
        self.row = pl.BlockSpec((1, width), lambda d, b, t: (0, d))
        self.reach = pl.BlockSpec((1, 1, length), lambda d, b, t: (b, 0, t))
        self.reach_after = pl.BlockSpec(
            (1, 1, length), lambda d, b, t: (b, 0, jnp.minimum(t + 1, steps - 1))
        )

    def filter(self, kernel_WD) -> pl.BlockSpec:
        return pl.BlockSpec((kernel_WD.shape[0], self.width), lambda d, b, t: (0, d))

    def column(self, more: int = 0) -> pltpu.VMEM:
        return pltpu.VMEM((self.length + more, LANES), jnp.float32)


def _plan(direction: str, x_BTD, activation: str | None):
    batch, time, channels = x_BTD.shape
    # Up to v5p, where silu takes more registers, backward would spill with 256 channels; v6e is faster so.
    narrow = activation is not None and direction == "backward" and mxu.tiles() == 1
    width = LANES if narrow else next(w for w in CHANNEL_BLOCKS[direction] if channels % w == 0)
    length = min(time, TIME_BLOCK)
    steps = time // length
    rest = (
        "parallel" if direction == "forward" else "arbitrary"
    )  # backward adds the filters' gradients
    call = functools.partial(
        pl.pallas_call,
        grid=(channels // width, batch, steps),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", rest, rest)),
        name=f"causal_conv_{direction}",
    )
    return call, _At(length, width, steps)


def _forward_kernel(
    taps, activation, x_ref, before_ref, state_ref, filter_ref, bias_ref, reach_ref, y_ref, reach
):
    reach[...] = _column(reach_ref[0])
    filters, bias = _rows(filter_ref, taps), bias_ref[...]
    first = pl.program_id(2) == 0

    def step(i, before):
        tokens = pl.ds(pl.multiple_of(i * STEP, STEP), STEP)
        x, reach_STEP = x_ref[0, tokens].astype(jnp.float32), reach[tokens]
        outputs = []
        for part in _groups():
            x_8D, reach_8D = x[part], _wide(reach_STEP[part], x.shape[1])
            y_8D = jnp.where(reach_8D >= 0, filters[0] * x_8D + bias, 0)
            for tap in range(1, taps):
                y_8D += jnp.where(
                    reach_8D >= tap, filters[tap] * _from_before(before, x_8D, tap), 0
                )
            outputs.append(activated(y_8D, activation))
            before = x_8D
        y_ref[0, tokens] = jnp.concatenate(outputs).astype(y_ref.dtype)
        return before

    jax.lax.fori_loop(0, x_ref.shape[1] // STEP, step, _last_8(first, state_ref, before_ref))


def _backward_kernel(
    taps,
    activation,
    x_ref,
    before_ref,
    state_ref,
    dy_ref,
    after_ref,
    filter_ref,
    reach_ref,
    reach_after_ref,
    *refs,
):
    *for_sums, dx_ref, dfilter_ref, dbias_ref, reach, totals = refs
    x_after_ref, bias_ref = for_sums or (after_ref, None)  # not used without an activation
    length, width = x_ref.shape[1:]
    steps = length // STEP
    first, last = pl.program_id(2) == 0, pl.program_id(2) == pl.num_programs(2) - 1
    filters = _rows(filter_ref, taps)
    reach[:length] = _column(reach_ref[0])
    after = _column(reach_after_ref[0][:, :LANES] if length >= LANES else reach_after_ref[0])
    reach[length:] = jnp.where(last, PADDING, after[:STEP])
    x_before_block = _last_8(first, state_ref, before_ref)

    @pl.when((pl.program_id(1) == 0) & first)
    def _():
        dfilter_ref[...] = jnp.zeros_like(dfilter_ref)
        dbias_ref[...] = jnp.zeros_like(dbias_ref)

    totals[...] = jnp.zeros_like(totals)

    def by_tap(x_before, x_8D, dy_8D, reach_8):
        """For each tap the input that it reaches, and the gradient of the sum that it is in, or 0.

        Both are masked before they are multiplied: an input or a gradient of another document may be NaN.
        """
        reach_8D = _wide(reach_8, width)
        reached = [reach_8D >= tap for tap in range(taps)]
        inputs = [x_8D, *(_from_before(x_before, x_8D, tap) for tap in range(1, taps))]
        inputs = [jnp.where(mask, x, 0) for mask, x in zip(reached, inputs)]
        if activation is not None:
            sums_8D = filters[0] * inputs[0] + bias_ref[...]
            for tap in range(1, taps):
                sums_8D += filters[tap] * inputs[tap]
            dy_8D = of_sums(sums_8D, dy_8D, activation)
        return inputs, [jnp.where(mask, dy_8D, 0) for mask in reached]

    def step(i, later):
        start = pl.multiple_of((steps - 1 - i) * STEP, STEP)
        tokens = pl.ds(start, STEP)
        x, dy = (ref[0, tokens].astype(jnp.float32) for ref in (x_ref, dy_ref))
        earlier = pl.ds(pl.multiple_of(jnp.maximum(start - STEP, 0), STEP), STEP)
        before = x_ref[0, earlier].astype(jnp.float32)[STEP - ROWS :]
        before = jnp.where(start == 0, x_before_block, before)
        reach_STEP = reach[tokens]
        outputs, added = [], None
        for part in reversed(_groups()):
            x_8D, dy_8D = x[part], dy[part]
            x_before = before if part.start == 0 else x[part.start - ROWS : part.start]
            inputs, here = by_tap(x_before, x_8D, dy_8D, reach_STEP[part])
            dx_8D = filters[0] * here[0]
            for tap in range(1, taps):
                dx_8D += filters[tap] * _from_after(here[tap], later[tap - 1], tap)
            terms = [*(input_8D * dy for input_8D, dy in zip(inputs, here)), here[0]]
            added = terms if added is None else [a + b for a, b in zip(added, terms)]
            outputs.append(dx_8D)
            later = tuple(here[1:])
        for row, total_8D in enumerate(added):
            totals[row] += total_8D
        dx_ref[0, tokens] = jnp.concatenate(outputs[::-1]).astype(dx_ref.dtype)
        return later

    last_8 = x_ref[0, length - STEP :].astype(jnp.float32)[STEP - ROWS :]
    x_after, dy_after = (ref[0].astype(jnp.float32)[:ROWS] for ref in (x_after_ref, after_ref))
    _, after = by_tap(last_8, x_after, dy_after, reach[length : length + ROWS])
    jax.lax.fori_loop(0, steps, step, tuple(after[1:]))
    for tap in range(taps):
        dfilter_ref[tap : tap + 1] += jnp.sum(totals[tap], axis=0, keepdims=True)
    dbias_ref[...] += jnp.sum(totals[taps], axis=0, keepdims=True)


def _groups():
    return [slice(i, i + ROWS) for i in range(0, STEP, ROWS)]


def _rows(ref, count: int):
    return [ref[row : row + 1] for row in range(count)]


def _last_8(first, state_ref, before_ref):
    """The 8 tokens before a time block, float32: of the state before the first block."""
    before = jnp.where(first, state_ref[0].astype(jnp.float32), before_ref[0].astype(jnp.float32))
    return before[STEP - ROWS :]


def _column(row_1L):
    """(L, 128): each entry in all lanes of its row."""
    return jnp.broadcast_to(row_1L, (LANES, row_1L.shape[1])).T


def _wide(column_8, width: int):
    return jnp.concatenate([column_8] * (width // LANES), axis=1)


def _from_before(before_8D, x_8D, tap: int):
    """Row i is that of `tap` tokens earlier."""
    row = jax.lax.broadcasted_iota(jnp.int32, x_8D.shape, 0)
    return pltpu.roll(jnp.where(row < ROWS - tap, x_8D, before_8D), tap, 0)


def _from_after(x_8D, after_8D, tap: int):
    """Row i is that of `tap` tokens later."""
    row = jax.lax.broadcasted_iota(jnp.int32, x_8D.shape, 0)
    return pltpu.roll(jnp.where(row < tap, after_8D, x_8D), ROWS - tap, 0)

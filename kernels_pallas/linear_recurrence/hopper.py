"""The linear recurrence as Mosaic GPU kernels for Hopper: one pass over memory, forward and backward.

A block processes 128 channels of a sequence, in tiles of time. The recurrence itself is short: one
multiply-add per token, with one thread per channel. The slow parts, loading tiles and computing gates,
are done by the block's warpgroups in parallel, each for every third tile; they pass h to each other in
the order of the tiles. Decays are only multiplied, so gates of 0 and 1 are exact.

Backward, c_t = a_t g_t obeys c_t = a_t c_{t+1} + a_t dh_t, the same recurrence in reverse, and
g_t = dh_t + c_{t+1} is the cotangent of b_t.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import mosaic_gpu as mg
from kernels_pallas.linear_recurrence.blocks import marks, whole
from kernels_pallas.linear_recurrence.hopper_kernels import (
    CHANNELS,
    TileWalk,
    backward_kernel,
    forward_kernel,
)

ROWS = 32  # tokens of a tile
BACKWARD_ROWS = 16  # the same; the backward pass loads more arrays
WARPGROUPS = 3


def recurrence(gated, a_BTD, b_BTD, call):
    """h_BTD float32, as the other forms; float32 or bfloat16 inputs.

    Where `gated`, the kernel computes a_t = exp(log_a_t) and b_t = sqrt(1 - a_t^2) x_t from
    a_BTD = log_a and b_BTD = x. At a document's start b_t = x_t: no state is carried, so the input
    is not damped.
    """
    time, channels = a_BTD.shape[1:]
    rows = max(ROWS, BACKWARD_ROWS)
    a_BTD, b_BTD, marks_BT, h_BD = whole(a_BTD, b_BTD, marks(call), call.state_B, rows, CHANNELS)
    # One mark per element of a tile: all blocks of a sequence read the same marks, from cache.
    marks_BTD = jnp.broadcast_to(
        marks_BT.astype(jnp.bfloat16)[..., None], (*marks_BT.shape, CHANNELS)
    )
    h_BTD = _recurrence(gated, call.interpret, a_BTD, b_BTD, marks_BTD, h_BD)
    return h_BTD[:, :time, :channels]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(gated, interpret, a_BTD, b_BTD, marks_BTD, h_BD):
    return _forward(gated, interpret, a_BTD, b_BTD, marks_BTD, h_BD)[0]


def _forward(gated, interpret, a_BTD, b_BTD, marks_BTD, h_BD):
    (h_BTD,) = _launch(
        forward_kernel,
        gated,
        interpret,
        ROWS,
        a_BTD.shape,
        a_BTD,
        b_BTD,
        marks_BTD,
        h_BD,
        outputs=[jax.ShapeDtypeStruct(a_BTD.shape, jnp.float32)],
        scratch=dict(in_tiles=[_tiles(ROWS, x.dtype) for x in (a_BTD, b_BTD)]),
        arrivals=3,
    )
    h_BTD = checkpoint_name(h_BTD, "linear_recurrence_h")
    return h_BTD, (a_BTD, b_BTD, marks_BTD, h_BD, h_BTD)


def _backward(gated, interpret, residuals, dh_BTD):
    a_BTD, b_BTD, marks_BTD, h_BD, h_BTD = residuals
    # Only the fused gate needs its input in the backward pass.
    inputs = [a_BTD, b_BTD, dh_BTD] if gated else [a_BTD, dh_BTD]
    outputs = [
        jax.ShapeDtypeStruct(a_BTD.shape, a_BTD.dtype),
        jax.ShapeDtypeStruct(b_BTD.shape, b_BTD.dtype),
        jax.ShapeDtypeStruct(h_BD.shape, jnp.float32),
    ]
    da_BTD, db_BTD, dh_BD = _launch(
        backward_kernel,
        gated,
        interpret,
        BACKWARD_ROWS,
        a_BTD.shape,
        *inputs,
        h_BTD,
        marks_BTD,
        h_BD,
        outputs=outputs,
        scratch=dict(
            in_tiles=[_tiles(BACKWARD_ROWS, x.dtype) for x in inputs],
            out_tiles=[_tiles(BACKWARD_ROWS, x.dtype) for x in outputs[:2]],
            h_tiles=_tiles(BACKWARD_ROWS),
            ends=mg.vector((CHANNELS,)),
        ),
        arrivals=3 + len(inputs),
    )
    return da_BTD, db_BTD, jnp.zeros_like(marks_BTD), dh_BD


_recurrence.defvjp(_forward, _backward)


def _launch(kernel, gated, interpret, rows, shape, *operands, outputs, scratch, arrivals):
    batch, time, channels = shape
    walk = TileWalk(rows, time // rows, WARPGROUPS, reverse=kernel is backward_kernel)
    direction = "backward" if walk.reverse else "forward"
    return mg.launch(
        functools.partial(kernel, gated, walk),
        *operands,
        name=f"{'gated' if gated else 'linear'}_recurrence_{direction}",
        grid=dict(channels=channels // CHANNELS, batch=batch),
        outputs=outputs,
        scratch=dict(
            marks=_tiles(rows, jnp.bfloat16),
            decays=_tiles(rows),
            values=_tiles(rows),
            carry=mg.vector((WARPGROUPS, CHANNELS)),
            loaded=mg.barriers(WARPGROUPS, arrivals),
            turn=mg.barriers(WARPGROUPS),
            **scratch,
        ),
        warpgroups=WARPGROUPS,
        interpret=interpret,
    )


def _tiles(rows: int, dtype=jnp.float32):
    return mg.vector((WARPGROUPS, rows, CHANNELS), dtype)

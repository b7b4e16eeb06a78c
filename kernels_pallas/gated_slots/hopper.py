"""Gated slots with the walk over chunks as a Hopper kernel, forward and backward.

The slots that enter the chunks depend on gates, writes, keys and values alone, not on a query: one
walk that reads nothing (`hopper_walk.walk`) gives both passes' at once. Everything else knows no order
of chunks and is XLA's, for all of them side by side (`passes.py`). Backward the same kernel walks from
the last chunk, once for the slots of keys and once for those of values, whose queries' weights differ.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import dispatch, hopper_walk
from kernels_pallas.gated_slots import passes
from kernels_pallas.gated_slots.chunked import in_groups
from kernels_pallas.hopper_walk import CHUNK, TILE, Plan, Steps
from kernels_pallas.mxu import resolve_precision


def gated_slots(
    q_BTGRK,
    k_BTGK,
    v_BTGV,
    log_gate_BTGM,
    write_BTGM,
    resets_BT,
    k_slots_BGMK,
    v_slots_BGMV,
    *,
    scale,
    precision,
):
    """As the chunked form. The kernel's products read bfloat16 at the default precision; float32 at
    "highest" is for an interpreter: the chip has no such products."""
    default = resolve_precision(precision) == jax.lax.Precision.DEFAULT
    operand = jnp.bfloat16 if default else jnp.float32
    static = _Static(precision, operand, dispatch.target().interpret)
    sizes = 1, -(-q_BTGRK.shape[1] // CHUNK), CHUNK
    arrays = q_BTGRK * scale, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM, resets_BT

    def run(*arrays):
        *tokens, slots_BGMZ = arrays
        out, lse, last = _slots(static, *(x[0] for x in tokens), slots_BGMZ)
        return out[None], lse[None], last

    return in_groups(run, sizes, arrays, k_slots_BGMK, v_slots_BGMV)


class _Static(NamedTuple):
    """What is static of a call; `operand` is the dtype of what the kernel's products read."""

    precision: Any
    operand: Any
    interpret: Any

    @property
    def form(self) -> passes.Form:
        dot = functools.partial(jnp.matmul, precision=self.precision)
        return passes.Form(dot, functools.partial(_carry, self))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _slots(static, q, kv, log_gate, write, resets, slots_BGMZ):
    return _forward(static, q, kv, log_gate, write, resets, slots_BGMZ)[0]


def _forward(static, *arrays):
    outs, (enter_BGNMZ, earlier_BGNCRM) = passes.forward(static.form, *arrays)
    # Rounded already, by the kernel that wrote them.
    enter_BGNMZ = enter_BGNMZ.astype(static.operand)
    names = "out", "lse", "entering", "logits"
    kept = (*outs[:2], enter_BGNMZ, earlier_BGNCRM)
    out, lse, enter, earlier = (checkpoint_name(x, f"gated_slots_{n}") for x, n in zip(kept, names))
    return (out, lse, outs[2]), (*arrays[:5], enter, earlier, out, lse)


def _backward(static, residuals, cotangents):
    *tokens, enter_BGNMZ, earlier, out, lse = residuals
    residuals = *tokens, enter_BGNMZ.astype(jnp.float32), earlier, out, lse
    *dtokens, dslots_BGMZ = passes.backward(static.form, residuals, cotangents)
    return *dtokens, None, dslots_BGMZ


_slots.defvjp(_forward, _backward)


def _carry(static, total_BGNM, writes, first_BGMZ, reverse=False):
    """`passes.Form.carry`: a walk for each of `writes`, over its own columns of Z."""
    batch, kv_heads, chunks, slots = total_BGNM.shape
    heads, padded = batch * kv_heads, -(-slots // TILE) * TILE
    keep = _pad(total_BGNM, 3, padded).reshape(heads, -1)
    columns, lasts, entering = 0, [], []
    for weights, x in writes:
        size, rows = x.shape[-1], weights.shape[-2]
        plan = Plan(
            heads,
            1,
            chunks,
            padded,
            -(-size // TILE) * TILE,
            operand=static.operand,
            output=None,
            interpret=static.interpret,
            rows=rows,
        )
        weights, x = _pad(weights, 4, padded), _pad(x, 4, plan.value_size)
        steps = Steps(
            write=weights.astype(static.operand).reshape(heads, plan.time, padded),
            keep=keep,
            d=x.astype(static.operand).reshape(heads, plan.time, 1, plan.value_size),
        )
        first = first_BGMZ[..., columns : columns + size]
        first = _pad(_pad(first, 2, padded), 3, plan.value_size)
        last, found = hopper_walk.walk(
            plan,
            f"gated_slots_{'backward' if reverse else 'forward'}",
            steps,
            first.reshape(heads, padded, -1),
            kept=True,
            reverse=reverse,
        )
        shape = batch, kv_heads, padded, plan.value_size
        lasts.append(last.reshape(shape)[:, :, :slots, :size])
        found = found.reshape(*shape[:2], chunks, *shape[2:])[..., :slots, :size]
        entering.append(found.astype(jnp.float32))
        columns += size
    return jnp.concatenate(entering, axis=-1), jnp.concatenate(lasts, axis=-1)


def _pad(x, axis: int, size: int):
    """Zeros at the end, of slots that nothing is written to or of channels."""
    added = [(0, 0)] * x.ndim
    added[axis] = 0, size - x.shape[axis]
    return jnp.pad(x, added)

"""Gated slots with the scan over chunks as a Hopper kernel, forward and backward.

The slots before each chunk depend on gates, writes, keys and values, but not on queries: one scan
without outputs (`hopper_walk.walk`) computes those of keys and of values together. XLA computes
everything else, for all chunks at once (`passes.py`). Backward the same kernel scans in reverse, once
for the key slots and once for the value slots, because their queries' weights differ.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import dispatch, hopper_walk
from kernels_pallas.gated_slots import passes
from kernels_pallas.gated_slots.chunked import in_groups
from kernels_pallas.hopper_walk import CHUNK, TILE, WalkInputs, WalkPlan
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
    """As the chunked form. Products read bfloat16 at the default precision. At "highest" they read
    float32, which only an interpreter can run: the chip has no such products."""
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
    """The static options of a call; `operand` is the dtype of the kernel's operands."""

    precision: Any
    operand: Any
    interpret: Any

    @property
    def ops(self) -> passes.ChunkOps:
        dot = functools.partial(jnp.matmul, precision=self.precision)
        return passes.ChunkOps(dot, functools.partial(_carry, self))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _slots(static, q, kv, log_gate, write, resets, slots_BGMZ):
    return _forward(static, q, kv, log_gate, write, resets, slots_BGMZ)[0]


def _forward(static, *arrays):
    outs, (enter_BGNMZ, earlier_BGNCRM) = passes.forward(static.ops, *arrays)
    # Exact: the kernel has rounded them already.
    enter_BGNMZ = enter_BGNMZ.astype(static.operand)
    names = "out", "lse", "entering", "logits"
    kept = (*outs[:2], enter_BGNMZ, earlier_BGNCRM)
    out, lse, enter, earlier = (checkpoint_name(x, f"gated_slots_{n}") for x, n in zip(kept, names))
    return (out, lse, outs[2]), (*arrays[:5], enter, earlier, out, lse)


def _backward(static, residuals, cotangents):
    *tokens, enter_BGNMZ, earlier, out, lse = residuals
    residuals = *tokens, enter_BGNMZ.astype(jnp.float32), earlier, out, lse
    *dtokens, dslots_BGMZ = passes.backward(static.ops, residuals, cotangents)
    return *dtokens, None, dslots_BGMZ


_slots.defvjp(_forward, _backward)


def _carry(static, total_BGNM, writes, first_BGMZ, reverse=False):
    """`passes.ChunkOps.carry`: a walk for each of `writes`, over its own columns of Z."""
    batch, kv_heads, chunks, slots = total_BGNM.shape
    heads, padded = batch * kv_heads, -(-slots // TILE) * TILE
    keep = _pad(total_BGNM, 3, padded).reshape(heads, -1)
    columns, lasts, entering = 0, [], []
    for weights, x in writes:
        size, rows = x.shape[-1], weights.shape[-2]
        plan = WalkPlan(
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
        steps = WalkInputs(
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
            keep_states=True,
            reverse=reverse,
        )
        shape = batch, kv_heads, padded, plan.value_size
        lasts.append(last.reshape(shape)[:, :, :slots, :size])
        found = found.reshape(*shape[:2], chunks, *shape[2:])[..., :slots, :size]
        entering.append(found.astype(jnp.float32))
        columns += size
    return jnp.concatenate(entering, axis=-1), jnp.concatenate(lasts, axis=-1)


def _pad(x, axis: int, size: int):
    """Pads `axis` with zeros at the end: slots without writes, or channels."""
    added = [(0, 0)] * x.ndim
    added[axis] = 0, size - x.shape[axis]
    return jnp.pad(x, added)

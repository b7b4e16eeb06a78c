"""The delta rule with the scan over chunks as Hopper kernels, forward and backward.

XLA computes everything that does not depend on the state, for all chunks at once, as in the chunked
form: decays and scores, the inverse T of I + A, and W = T w, U = T u. The kernels scan over the
chunks with the state on chip: D = U - W S, o = read_s S + read_d D, S <- decay S + write^T D, and the
reverse. The gradients of the precomputed matrices are products over all chunks at once again.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas.delta_rule import chunked, hopper_kernels
from kernels_pallas.delta_rule.inputs import per_channel
from kernels_pallas.hopper_walk import CHUNK, WalkPlan
from kernels_pallas.mxu import resolve_precision


def delta_rule(q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, call):
    """(o_BTHV, last S_BHKV), as the other forms; o has the dtype of v.

    Products read bfloat16 at the default precision. At "highest" they read float32, which only an
    interpreter can run: the chip has no such products.
    """
    batch, time, heads, value_size = v_BTHV.shape
    default = resolve_precision(call.precision) == jax.lax.Precision.DEFAULT
    plan = WalkPlan(
        batch,
        heads,
        -(-time // CHUNK),
        k_BTGK.shape[3],
        value_size,
        operand=jnp.bfloat16 if default else jnp.float32,
        output=v_BTHV.dtype,
        interpret=call.interpret,
    )

    def whole_chunks(x_BT):
        """Pads with zeros at the end, which change nothing."""
        return jnp.pad(x_BT, ((0, 0), (0, plan.time - time)) + ((0, 0),) * (x_BT.ndim - 2))

    inputs = (q_BTGK, k_BTGK, v_BTHV, beta_BTH, per_channel(log_decay), erase_BTGK)
    inputs = jax.tree.map(lambda x: whole_chunks(call.without_padding(x)), inputs)
    resets_BT = whole_chunks(call.resets_BT)
    o_BTHV, s_BHKV = _run(plan, call.precision, call.scale, inputs, resets_BT, call.state_B)
    return o_BTHV[:, :time], s_BHKV


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(plan, precision, scale, inputs, resets_BT, s_BHKV):
    return _forward(plan, precision, scale, inputs, resets_BT, s_BHKV, kept=False)[0]


def _forward(plan, precision, scale, inputs, resets_BT, s_BHKV, kept=True):
    system, read = _prepare(precision, scale, inputs, resets_BT)
    inverse = chunked.unit_lower_inverse(system.a).astype(plan.operand)
    inverse = checkpoint_name(inverse, "delta_rule_inverse")
    dot = functools.partial(_dot, plan)
    u = _rows(plan, dot(inverse, system.u))
    s = s_BHKV.reshape(-1, plan.key_size, plan.value_size)
    o_BTHV, last, *arrays = hopper_kernels.forward(
        plan, u, *_kernel_inputs(plan, inverse, system, read), s, kept
    )
    names = "delta_rule_states", "delta_rule_errors"
    arrays = [checkpoint_name(x, name) for x, name in zip(arrays, names)]
    return (o_BTHV, last.reshape(s_BHKV.shape)), (inputs, resets_BT, inverse, *arrays)


def _backward(plan, precision, scale, kept, cotangents):
    inputs, resets_BT, inverse, s, d = kept
    do_BTHV, ds_BHKV = cotangents
    dot = functools.partial(_dot, plan)
    prepare = functools.partial(_prepare, precision, scale, resets_BT=resets_BT)
    (system, read), from_inputs = jax.vjp(prepare, inputs)
    do_BTHV = do_BTHV.astype(plan.operand)
    ds = ds_BHKV.reshape(-1, plan.key_size, plan.value_size)
    dd, ds, first = hopper_kernels.backward(
        plan, *_kernel_inputs(plan, inverse, system, read), do_BTHV, ds
    )

    def chunks(x, *size):
        return x.reshape(plan.batch, plan.heads, plan.chunks, *size)

    do = jnp.transpose(
        do_BTHV.reshape(plan.batch, plan.chunks, CHUNK, plan.heads, -1), (0, 3, 1, 2, 4)
    )
    d, dd = (chunks(x, CHUNK, plan.value_size) for x in (d, dd))
    s, ds = (chunks(x, plan.key_size, plan.value_size) for x in (s, ds))
    d_t, s_t = (jnp.swapaxes(x, -1, -2) for x in (d, s))
    # As in the chunked form, the cotangent of the inverse is never needed.
    drhs = dot(jnp.swapaxes(inverse, -1, -2), dd)
    ddecay = jnp.sum(ds.astype(jnp.float32) * s.astype(jnp.float32), axis=-1, keepdims=True)
    if system.decay.shape[-2] == 1:
        ddecay = jnp.sum(ddecay, axis=-2, keepdims=True)
    dsystem = chunked.System(
        a=-jnp.tril(dot(drhs, d_t), -1),
        u=drhs,
        w=-dot(drhs, s_t),
        write=dot(d, jnp.swapaxes(ds, -1, -2)),
        decay=ddecay,
    )
    (dinputs,) = from_inputs((dsystem, (dot(do, s_t), dot(do, d_t))))
    return dinputs, None, first.reshape(ds_BHKV.shape)


_run.defvjp(_forward, _backward)


def _prepare(precision, scale, inputs, resets_BT):
    """`chunked.prepare` in float32; arrays (B, H, N, ...)."""
    q_BTGK, *others = (x if x is None else x.astype(jnp.float32) for x in inputs)
    return chunked.prepare(
        q_BTGK * scale, *others, resets_BT, precision=precision, chunks_first=False
    )


def _kernel_inputs(plan, inverse, system, read):
    """The inputs of both kernels: -W, write, decay, read_s and read_d of all chunks."""
    shape = *system.decay.shape[:3], plan.key_size, 1
    decay = jnp.broadcast_to(system.decay, shape).reshape(-1, plan.chunks * plan.key_size)
    w = -_dot(plan, inverse, system.w)
    w, write, read_s, read_d = (
        _rows(plan, x.astype(plan.operand)) for x in (w, system.write, *read)
    )
    return w, write, decay, read_s, read_d


def _rows(plan, x_BHNCK):
    """(B * H, T, K)"""
    return x_BHNCK.reshape(-1, plan.time, x_BHNCK.shape[-1])


def _dot(plan, x, y):
    """A float32 product with operands rounded as in the kernels."""
    return jnp.matmul(
        x.astype(plan.operand),
        y.astype(plan.operand),
        precision=jax.lax.Precision.HIGHEST if plan.operand == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )

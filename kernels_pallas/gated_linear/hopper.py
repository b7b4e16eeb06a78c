"""Gated linear attention with the scan over chunks as a Hopper kernel, forward and backward.

XLA computes everything that does not depend on the state, for all chunks at once, with the chunked
form's code: decays, the weights of the pairs of a chunk, and queries and keys multiplied by the decays.
The kernel (`hopper_walk.walk`) scans over the chunks with the state on chip: o = read_s S + read_d v,
S <- keep S + write^T v. Backward it scans in reverse with the state's cotangent and returns that of v.
The gradients of the precomputed matrices are products over all chunks at once again; those of q, k and
the decays follow by `jax.vjp`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import hopper_walk
from kernels_pallas.gated_linear import channel, scalar
from kernels_pallas.gated_linear.chunks import by_group, inclusive_sums
from kernels_pallas.gated_linear.inputs import per_token
from kernels_pallas.hopper_walk import CHUNK, TILE, WalkInputs, WalkPlan
from kernels_pallas.mxu import resolve_precision


def gated_linear(q_BTGK, k_BTGK, v_BTHV, log_decay, call):
    """(o_BTHV, last S_BHKV), as the other forms.

    Products read bfloat16 at the default precision. At "highest" they read float32, which only an
    interpreter can run: the chip has no such products.
    """
    batch, time, heads, value_size = v_BTHV.shape
    key_size = k_BTGK.shape[3]
    default = resolve_precision(call.precision) == jax.lax.Precision.DEFAULT
    plan = WalkPlan(
        batch,
        heads,
        -(-time // CHUNK),
        -(-key_size // TILE) * TILE,
        -(-value_size // TILE) * TILE,
        operand=jnp.bfloat16 if default else jnp.float32,
        output=v_BTHV.dtype,
        interpret=call.interpret,
    )

    def whole(x_BT, size=None):
        """Pads with zeros to whole chunks and tiles, which changes nothing."""
        last = 0 if size is None else size - x_BT.shape[-1]
        between = ((0, 0),) * (x_BT.ndim - 3)
        added = ((0, 0), (0, plan.time - time)) + between + ((0, last),) * (x_BT.ndim > 2)
        return jnp.pad(x_BT, added)

    inputs = q_BTGK, k_BTGK, v_BTHV, per_token(log_decay, v_BTHV, call)
    q_BTGK, k_BTGK, v_BTHV, log_decay = map(call.without_padding, inputs)
    gates = whole(log_decay, plan.key_size if log_decay.ndim == 4 else None)
    keys = (whole(x, plan.key_size) for x in (q_BTGK, k_BTGK))
    values = whole(v_BTHV, plan.value_size)
    added = (0, 0), (0, 0), (0, plan.key_size - key_size), (0, plan.value_size - value_size)
    o_BTHV, s_BHKV = _run(
        plan,
        call.precision,
        1.0 if call.scale is None else call.scale,
        (*keys, gates),
        values,
        whole(call.starts_BT),
        jnp.pad(call.state_B, added),
    )
    o_BTHV = o_BTHV[:, :time, :, :value_size].astype(call.dtype)
    return call.without_padding(o_BTHV), s_BHKV[:, :, :key_size, :value_size]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(plan, precision, scale, inputs, v_BTHV, resets_BT, s_BHKV):
    return _forward(plan, precision, scale, inputs, v_BTHV, resets_BT, s_BHKV, kept=False)[0]


def _forward(plan, precision, scale, inputs, v_BTHV, resets_BT, s_BHKV, kept=True):
    prepared = _prepare(precision, scale, inputs, resets_BT)
    s = s_BHKV.reshape(-1, plan.key_size, plan.value_size)
    o_BTHV, last, *states = hopper_walk.walk(
        plan, "gated_linear_forward", _steps(plan, prepared, v_BTHV), s, keep_states=kept
    )
    states = [checkpoint_name(x, "gated_linear_states") for x in states]
    return (o_BTHV, last.reshape(s_BHKV.shape)), (inputs, v_BTHV, resets_BT, *states)


def _backward(plan, precision, scale, kept, cotangents):
    inputs, v_BTHV, resets_BT, s = kept
    do_BTHV, ds_BHKV = cotangents
    prepare = functools.partial(_prepare, precision, scale, resets_BT=resets_BT)
    prepared, from_inputs = jax.vjp(prepare, inputs)
    do_BTHV = do_BTHV.astype(plan.operand)
    dv_BTHV, first, ds = hopper_walk.walk(
        plan,
        "gated_linear_backward",
        _steps(plan, prepared, v_BTHV).backward(do_BTHV),
        ds_BHKV.reshape(-1, plan.key_size, plan.value_size),
        keep_states=True,
        reverse=True,
    )

    # --- gradients of the precomputed matrices, from the state before each chunk and the cotangent of
    # the state after it ----------------------------------------------------------------------------
    do, v = (_chunks(x.astype(plan.operand), plan.heads)[:, :, 0] for x in (do_BTHV, v_BTHV))
    states = plan.batch, plan.heads, plan.chunks, plan.key_size, plan.value_size
    s, ds = s.reshape(states), ds.reshape(states)
    dkeep = jnp.sum(ds.astype(jnp.float32) * s.astype(jnp.float32), axis=-1)[..., None, :]
    if prepared.keep.shape[-1] == 1:
        dkeep = jnp.sum(dkeep, axis=-1, keepdims=True)
    dprepared = Prepared(
        read_s=_dot(plan, "bhncv,bhnkv->bhnck", do, s),
        read_d=_dot(plan, "bhniv,bhnjv->bhnij", do, v),
        write=_dot(plan, "bhncv,bhnkv->bhnck", v, ds),
        keep=dkeep,
    )
    (dinputs,) = from_inputs(dprepared)
    return dinputs, dv_BTHV.astype(v_BTHV.dtype), None, first.reshape(ds_BHKV.shape)


_run.defvjp(_forward, _backward)


class Prepared(NamedTuple):
    """The inputs of a walk besides the values, (B, H, N, ...) float32.

    Attributes:
      read_s: (C, K), scaled queries with the decay since the chunk's start.
      read_d: (C, C), scaled weights of the pairs of tokens.
      write: (C, K), keys with the decay until the chunk's end.
      keep: (1, K), or (1, 1) for one decay per head.
    """

    read_s: jax.Array
    read_d: jax.Array
    write: jax.Array
    keep: jax.Array


def _prepare(precision, scale, inputs, resets_BT) -> Prepared:
    """From q, k (B, T, G, K) and log-decays (B, T, H) or (B, T, H, K)."""
    q_BTGK, k_BTGK, g_BTH = (x.astype(jnp.float32) for x in inputs)
    groups = k_BTGK.shape[2]
    q_BG1NCK, k_BG1NCK, g_BGRNC = (_chunks(x, groups) for x in (q_BTGK, k_BTGK, g_BTH))
    # Counted within the chunk: 0 is the document that the entering state belongs to.
    number_B11NC = inclusive_sums(_chunks(resets_BT[:, :, None].astype(jnp.float32), 1))
    if g_BTH.ndim == 3:
        decays = scalar.Decays.of(scalar.no_lower_than_underflow(g_BGRNC), number_B11NC)
        scores = jnp.einsum("bgrnik,bgrnjk->bgrnij", q_BG1NCK, k_BG1NCK, precision=precision)
        weights = scores * decays.between_NBGRCC
        since, until = decays.from_start_NBGRC[..., None], decays.to_end_NBGRC[..., None]
    else:
        weights, since, until = channel.pair_weights(q_BG1NCK, k_BG1NCK, g_BGRNC, precision)
        number = number_B11NC[..., None]
        weights = jnp.where(number == jnp.swapaxes(number, -1, -2), weights, 0)
        since = jnp.where(number == 0, jnp.exp(since), 0)
        until = jnp.where(number == number[..., -1:, :], jnp.exp(until), 0)
    prepared = Prepared(
        q_BG1NCK * (since * scale), weights * scale, k_BG1NCK * until, since[..., -1:, :]
    )
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), prepared)


def _chunks(x_BTHK, groups: int):
    """(B, T, H, ...) -> (B, G, R, N, C, ...)"""
    batch, time, heads, *rest = x_BTHK.shape
    x_BNCHK = x_BTHK.reshape(batch, time // CHUNK, CHUNK, heads, *rest)
    return jnp.moveaxis(by_group(x_BNCHK, groups, axis=3), (3, 4), (1, 2))


def _steps(plan, prepared: Prepared, v_BTHV) -> WalkInputs:
    """The inputs of the kernel."""
    read_s, read_d, write = (
        x.astype(plan.operand).reshape(-1, plan.time, x.shape[-1])
        for x in (prepared.read_s, prepared.read_d, prepared.write)
    )
    keep = jnp.broadcast_to(prepared.keep, (*prepared.keep.shape[:-1], plan.key_size))
    keep = keep.reshape(-1, plan.chunks * plan.key_size)
    return WalkInputs(write, keep, v_BTHV.astype(plan.operand), read_s, read_d)


def _dot(plan, spec, x, y):
    """A float32 product with operands rounded as in the kernel."""
    return jnp.einsum(
        spec,
        x,
        y,
        preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if plan.operand == jnp.float32 else None,
    )

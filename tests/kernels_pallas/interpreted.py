"""Runs TPU kernels on a CPU, interpreted, with small blocks, so that a few tokens are many blocks, and
compares them with the float64 reference."""

import contextlib

import jax
import jax.extend.core
import jax.numpy as jnp
from jax._src.interpreters.partial_eval import dce_jaxpr

from kernels_pallas import dispatch, testing


@contextlib.contextmanager
def kernels(interpret=True, precision="highest"):
    """TPU kernels interpreted; their products rounded only at the precision "default"."""
    with dispatch.kernels_for("tpu", interpret), jax.default_matmul_precision(precision):
        yield


def check_against_float64(
    subject,
    rng,
    batch,
    time,
    segment_ids=None,
    with_state=False,
    impl="pallas",
    dtype=jnp.float32,
    tolerance=1e-5,
):
    """Law 1: outputs, state and gradients of `dtype` inputs equal those of the float64 reference for
    the same values."""
    wide, own = errors(subject, rng, batch, time, segment_ids, with_state, (impl,), dtype)
    testing.assert_close(f"{subject.name}: {impl} = float64 reference", own[0], wide, tolerance)


def errors(subject, rng, batch, time, segment_ids, with_state, impls, dtype):
    """The float64 reference's results, and those of each of `impls`."""
    inputs, params = subject.inputs(rng, batch, time, dtype), subject.params(rng, dtype)
    state = subject.state(rng, batch, dtype) if with_state else None
    cotangents = testing.draw_cotangents(
        rng, subject, "reference", inputs, params, segment_ids, state
    )
    arguments = inputs, params, segment_ids, state, cotangents
    with jax.enable_x64(True):
        wide = jax.tree.map(_as_float64, arguments)
        want = jax.device_get(testing.runner(subject, "reference")(*wide))
    return want, [jax.device_get(testing.runner(subject, impl)(*arguments)) for impl in impls]


def kernels_read_again(loss, x) -> dict[str, bool]:
    """For each kernel in the backward pass of a rematerialised loss, whether an output of it is read."""
    jaxpr = jax.make_jaxpr(jax.grad(loss))(x).jaxpr
    jaxpr = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]
    return _read(jaxpr.eqns[-1].params["jaxpr"])  # of the checkpoint


def _read(jaxpr) -> dict[str, bool]:
    literal, found = jax.extend.core.Literal, {}
    used = {x for e in jaxpr.eqns for x in e.invars if not isinstance(x, literal)}
    used |= {x for x in jaxpr.outvars if not isinstance(x, literal)}
    for equation in jaxpr.eqns:
        is_used = bool(used & set(equation.outvars))
        if equation.primitive.name == "pallas_call":
            found[equation.params["name"]] = is_used
        elif equation.primitive.name == "scan":  # nothing in a loop is read if its results are not
            inner = _read(equation.params["jaxpr"].jaxpr)
            found |= {name: is_used and was for name, was in inner.items()}
    return found


def _as_float64(x):
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

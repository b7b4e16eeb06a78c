"""The selective scan beside the laws: exact steps, memory, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from subjects.selective_scan import selective_subject

from kernels_pallas import testing
from kernels_pallas.selective_scan import SelectiveScanState, selective_scan


def shapes(batch=2, time=5, channels=3, size=4, dtype=jnp.float32):
    tokens, maps = (batch, time, channels), (batch, time, size)
    return [jnp.zeros(s, dtype) for s in (tokens, tokens, (channels, size), maps, maps)]


def test_a_step_of_0_is_skipped_and_a_rate_of_0_forgets_nothing():
    """Steps are 0 or 1 and rates 0, so states are sums of whole numbers, without rounding."""
    rng = np.random.default_rng(6)
    x, b = rng.integers(-8, 9, (2, 1, 500, 2))
    dt = rng.integers(0, 2, (1, 500, 2))
    y = jax.jit(selective_scan)(
        *(jnp.asarray(i, jnp.float32) for i in (x, dt, np.zeros((2, 2)), b, np.ones((1, 500, 2))))
    )
    states = np.cumsum((dt * x)[..., None] * b[:, :, None], axis=1)
    np.testing.assert_array_equal(y, states.sum(axis=-1))


def test_no_array_holds_the_states_of_all_tokens():
    """Forward and backward, in the program as it is traced; the reference's has such arrays."""
    time, channels, size = 4096, 64, 16
    arrays = jax.eval_shape(lambda: shapes(1, time, channels, size))

    def largest(impl):
        def loss(*arrays):
            return jnp.sum(selective_scan(*arrays, impl=impl))

        return max(_sizes(jax.make_jaxpr(jax.grad(loss, argnums=range(5)))(*arrays).jaxpr))

    assert largest("chunked") < time * channels * size // 8
    assert largest("reference") == time * channels * size


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (x.aval.size for x in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _sizes(inner)


@pytest.mark.slow
def test_vmap(x64):
    testing.check_vmap(selective_subject(), np.random.default_rng(7), 3, 1, 40)


def test_states_are_float32_and_outputs_of_the_dtype_of_x():
    arrays = jax.eval_shape(lambda: shapes(dtype=jnp.bfloat16))
    y, state = jax.eval_shape(lambda *x: selective_scan(*x, return_state=True), *arrays)
    assert y.dtype == jnp.bfloat16 and state.h_BDN.dtype == jnp.float32


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(dt=jnp.zeros((2, 5, 4))), r"dt must have shape \(B, T, D\) = \(2, 5, 3\)"),
        (dict(a=jnp.zeros((2, 4))), r"a must have shape \(D, N\) = \(3, 4\)"),
        (dict(c=jnp.zeros((2, 5, 3))), r"c must have shape \(B, T, N\) = \(2, 5, 4\)"),
        (dict(a=jnp.zeros((3, 4), jnp.int32)), "a must be floating point"),
        (dict(impl="pallas"), "impl='pallas' has no kernel"),
        (
            dict(initial_state=SelectiveScanState(jnp.zeros((2, 3, 5)), jnp.zeros(2, jnp.int32))),
            "initial_state.h_BDN must have shape",
        ),
    ],
)
def test_errors(change, message):
    arguments = dict(zip(("x", "dt", "a", "b", "c"), shapes())) | change
    with pytest.raises(ValueError, match=message):
        selective_scan(*[arguments.pop(n) for n in ("x", "dt", "a", "b", "c")], **arguments)

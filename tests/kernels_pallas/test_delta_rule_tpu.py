"""The TPU kernels of the delta rule, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import jaxprs_in_params
from kernel_laws import LAWS, Held, interpreted, races_found
from rounding import assert_as_good_as_chunked
from subjects.delta_rule import delta_subject

from kernels_pallas import dispatch, testing, tpu_decays, tpu_grid
from kernels_pallas.delta_rule import delta_rule, tpu

#: One case by default, all with the slow tests.
ONE = ("channel", pytest.param("head", marks=pytest.mark.slow))
GATES = ("head", "channel")


def subject(gate, kv_heads=1, repeats=1, key_size=64, value_size=64, **options):
    return delta_subject(gate, kv_heads, repeats, key_size, value_size, **options)


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(tpu_grid, "CHUNK", 16)


@pytest.fixture(scope="module", params=[*GATES, pytest.param("erase", marks=pytest.mark.slow)])
def held(request):
    # Several chunks, the last not full; value heads that share a key head.
    length, tpu_grid.CHUNK = tpu_grid.CHUNK, 16
    options = dict(
        head=("head", dict(repeats=2, unit_eps=1e-6)),
        channel=("channel", {}),
        erase=("channel", dict(repeats=2, erase=True)),
    )
    gate, options = options[request.param]
    yield Held(subject(gate, **options), np.random.default_rng(0), time=38)
    tpu_grid.CHUNK = length


@pytest.mark.parametrize("law", LAWS)
def test_law(held, law):
    LAWS[law](held)


@pytest.mark.parametrize("gate", ONE)
def test_memory_is_initialised_and_free_of_races(gate, short_chunks):
    simulated = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    rng = np.random.default_rng(1)
    Held(subject(gate), rng, batch=1, time=20, interpret=simulated).check_values()
    assert not races_found()


@pytest.mark.parametrize("gate", ONE)
def test_rounded_products_are_as_exact_as_in_the_chunked_form(gate, monkeypatch):
    monkeypatch.setattr(tpu_grid, "CHUNK", 32)
    rng = np.random.default_rng(2)
    assert_as_good_as_chunked(subject(gate), rng, batch=1, time=80)


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES)
def test_rounded_products_with_an_erase_key_are_as_exact(gate, monkeypatch):
    monkeypatch.setattr(tpu_grid, "CHUNK", 32)
    erasing = subject(gate, erase=True)
    assert_as_good_as_chunked(erasing, np.random.default_rng(2), batch=1, time=80)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_inverse(size):
    """Includes a matrix whose powers grow: with beta 2 and equal keys every entry is 2."""
    keys = np.random.default_rng(size).standard_normal((size, 16))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    invert = jax.jit(lambda *a: tpu.unit_lower_inverses(a, jax.lax.Precision.HIGHEST))
    matrices = np.tril(2 * keys @ keys.T, -1), np.tril(np.full((size, size), 2.0), -1)
    inverses = invert(*(jnp.asarray(a, jnp.float32) for a in matrices))
    for a, got in zip(matrices, map(np.asarray, inverses), strict=True):
        np.testing.assert_array_equal(np.triu(got, 1), 0)
        want = np.linalg.inv(np.eye(size) + a)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


SIZES = (
    ("none", dict(kv_heads=2, repeats=1, key_size=64, value_size=128), 130),
    ("head", dict(kv_heads=2, repeats=2, key_size=128, value_size=128), 63),
    ("head", dict(kv_heads=1, repeats=3, key_size=128, value_size=64), 127),
    ("head", dict(kv_heads=1, repeats=1, key_size=256, value_size=192), 200),
    ("channel", dict(kv_heads=1, repeats=2, key_size=128, value_size=64), 1),
    ("channel", dict(kv_heads=2, repeats=1, key_size=64, value_size=128), 300),
    ("channel", dict(kv_heads=1, repeats=1, key_size=192, value_size=256), 127),
    ("none", dict(kv_heads=2, repeats=1, key_size=64, value_size=128, erase=True), 130),
    ("head", dict(kv_heads=1, repeats=3, key_size=128, value_size=64, erase=True), 127),
    ("channel", dict(kv_heads=2, repeats=1, key_size=64, value_size=128, erase=True), 300),
    ("channel", dict(kv_heads=1, repeats=1, key_size=256, value_size=128, erase=True), 200),
    ("head", dict(kv_heads=2, repeats=2, key_size=128, value_size=64, unit_eps=1e-6), 130),
    ("channel", dict(kv_heads=1, repeats=4, key_size=64, value_size=128, unit_eps=0.1), 70),
    ("head", dict(kv_heads=1, repeats=1, key_size=64, value_size=64, erase=True, unit_eps=0.1), 20),
)


@pytest.mark.slow
@pytest.mark.parametrize("gate, sizes, time", SIZES)
def test_sizes(gate, sizes, time):
    held = Held(subject(gate, **sizes), np.random.default_rng(time), batch=1, time=time)
    held.check_values()
    held.check_no_gradient()


@pytest.mark.slow
@pytest.mark.parametrize("decay", (0.01, 1.0, 10.0))
@pytest.mark.parametrize("longest_key", (0.3, 1.0, 3.0))
@pytest.mark.parametrize("gate", GATES)
def test_strengths(gate, longest_key, decay):
    strong = subject(gate, longest_key=longest_key, decay=decay)
    held = Held(strong, np.random.default_rng(3), time=260)
    held.check_values()
    held.check_finite()


@pytest.mark.slow
def test_vmap(short_chunks):
    mapped = interpreted(subject("head"))
    rng = np.random.default_rng(4)
    testing.check_vmap(mapped, rng, 2, 1, 20, jnp.float32, 1e-5, "pallas")


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def kernels(gate, erase):
    """(operands, results, products, exponentials) of the kernels traced for two heads, both passes."""
    keys, per_head = jnp.zeros((1, 64, 2, 64)), jnp.zeros((1, 64, 2))
    gates = dict(none=None, head=per_head, channel=keys)[gate]

    def gradient(keys, erase_BTGK, cotangent):
        def run(q, k, v, erase_BTGK):
            options = dict(erase_BTGK=erase_BTGK, impl="pallas")
            return delta_rule(q, k, v, per_head, gates, **options)

        return jax.vjp(run, keys, keys, keys, erase_BTGK)[1](cotangent)

    with dispatch.kernels_for("tpu"):
        traced = jax.make_jaxpr(gradient)(keys, keys if erase else None, keys)
    counts = []
    for call in equations(traced.jaxpr):
        if call.primitive.name == "pallas_call":
            bodies = jaxprs_in_params(call.params)
            names = [e.primitive.name for body in bodies for e in equations(body)]
            work = names.count("dot_general"), names.count("exp")
            counts.append((len(call.invars), len(call.outvars), *work))
    return counts


@pytest.mark.parametrize(
    "gate, forward, backward", [("none", 38, 44), ("head", 38, 44), ("channel", 52, 92)]
)
def test_the_erase_key_is_one_operand_that_the_other_rules_do_not_have(
    gate, forward, backward, monkeypatch
):
    """With one, a kernel has an operand more, the backward one a result, and no product more."""
    monkeypatch.setattr(tpu_grid, "CHUNK", 128)  # while `held` lives, its chunks are shorter
    exponentials = 16 if gate == "channel" else 8
    without = [(6, 6, forward, exponentials), (11, 7, backward, exponentials)]
    assert kernels(gate, erase=False) == without
    (operands, results, *work), (backward_operands, gradients, *backward_work) = without
    assert kernels(gate, erase=True) == [
        (operands + 1, results, *work),
        (backward_operands + 1, gradients + 1, *backward_work),
    ]


FAULTS = {
    "boundary dropped": ("with_resets", lambda g, resets: g.astype(jnp.float32), "packed"),
    "inverse of half a chunk": ("levels", lambda length: tpu_decays.levels(length) - 1, "split"),
    "decays transposed": ("to_column", lambda row: tpu_decays.to_column(row)[::-1], "split"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, short_chunks, monkeypatch):
    name, replacement, law = FAULTS[fault]
    monkeypatch.setattr(tpu, name, replacement)
    held = Held(subject("head"), np.random.default_rng(5), time=38)
    with pytest.raises(AssertionError, match="off by"):
        LAWS[law](held)


def erases_at_the_written_key(plan, q, k, x, *rest, original=tpu._channel_scores):
    return original(plan, q, k, k, *rest)


def erase_key_not_differentiated(self, *rest, original=tpu._Backward.per_head):
    dq, dk, dx, *others = original(self, *rest)
    return dq, dk, jnp.zeros_like(dx), *others


@pytest.mark.slow
@pytest.mark.parametrize(
    "gate, where, name, replacement",
    [
        ("channel", tpu, "_channel_scores", erases_at_the_written_key),
        ("head", tpu._Backward, "per_head", erase_key_not_differentiated),
    ],
)
def test_planted_faults_of_the_erase_key_are_caught(
    gate, where, name, replacement, short_chunks, monkeypatch
):
    monkeypatch.setattr(where, name, replacement)
    held = Held(subject(gate, erase=True), np.random.default_rng(5), time=38)
    with pytest.raises(AssertionError, match="off by"):
        held.check_split()

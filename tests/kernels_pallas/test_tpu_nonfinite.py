"""NaN and infinity in the TPU kernels of the recurrences: replaced in VMEM, forward and backward."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import kernels, kernels_read_again
from jax.experimental import pallas as pl
from kernel_laws import Held
from subjects.delta_rule import delta_subject
from subjects.gated_linear import gated_subject

from kernels_pallas import tpu_grid, tpu_nonfinite
from kernels_pallas.delta_rule import tpu as delta_tpu
from kernels_pallas.gated_linear import tpu as gated_tpu

VALUES = (np.nan, np.inf, -np.inf)
# Chunks have 16 tokens: document 2 begins in the first and ends in the second, the last one goes on
# into the third, which is not full. The state belongs to document 1.
IDS = jnp.asarray(np.repeat([1, 2, 0, 3], [10, 13, 5, 10])[None])
TOKEN = 14
SUBJECTS = {
    "delta_rule, gate per head": (delta_tpu, delta_subject("head", 1, 2, 64, 64, unit_eps=1e-6)),
    "delta_rule, gate per channel": (delta_tpu, delta_subject("channel", 1, 1, 64, 64)),
    "delta_rule, erase key": (delta_tpu, delta_subject("channel", 1, 2, 64, 64, erase=True)),
    "gated_linear, gate per head": (gated_tpu, gated_subject(1, 2, 64, 64, "token", scale=0.25)),
    "gated_linear, gate per channel": (gated_tpu, gated_subject(1, 1, 64, 64, "channel")),
}
FAST = ("delta_rule, gate per head", "gated_linear, gate per channel")
KINDS = [pytest.param(k, marks=() if k in FAST else pytest.mark.slow) for k in SUBJECTS]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(tpu_grid, "CHUNK", 16)


@functools.cache
def held_of(kind) -> Held:
    return Held(SUBJECTS[kind][1], np.random.default_rng(0), batch=1, time=IDS.shape[1])


def planted(tree, name, token, value):
    """The arrays with the value in one number of a token."""
    return {
        n: x.at[(0, token, *[0] * (x.ndim - 2))].set(value) if n == name else x
        for n, x in tree.items()
    }


def run(held, arguments, **changed):
    """(outputs, last state, gradients of inputs, gradient of the state), as numpy arrays."""
    inputs, params, ids, state, (cotangents, last) = arguments
    inputs, cotangents = changed.get("inputs", inputs), changed.get("cotangents", cotangents)
    state = state._replace(s_BHKV=changed.get("state", state.s_BHKV))
    found = held.run(inputs, params, ids, state, (cotangents, last))
    gradients, _, of_state = found["gradients"]
    results = found["outputs"]["o"], found["final"].s_BHKV, gradients, of_state[0]
    return jax.tree.map(np.asarray, results)


def assert_same(found, was, tokens):
    """Exactly equal outputs, gradients at the tokens and last state."""
    np.testing.assert_array_equal(found[0][:, tokens], was[0][:, tokens])
    np.testing.assert_array_equal(found[1], was[1])
    for name, gradient in found[2].items():
        np.testing.assert_array_equal(gradient[:, tokens], was[2][name][:, tokens], err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_not_finite_stays_in_its_document(kind):
    held = held_of(kind)
    arguments = held.draw(IDS)
    was = run(held, arguments)
    others, ids = np.asarray(IDS[0]) != 2, np.asarray(IDS[0])
    for name, value in itertools.product(arguments[0], VALUES):
        if "decay" in name and value == -np.inf:
            continue  # a decay of 0
        inputs = planted(arguments[0], name, TOKEN, value)
        out = run(held, arguments, inputs=inputs)[0]
        assert np.isnan(out[0, TOKEN:23]).all(), (name, value)
        assert np.isfinite(out[0, :TOKEN]).all(), (name, value)
        # A loss has cotangents of NaN where outputs are.
        cotangents = dict(o=jnp.where(jnp.isnan(out), jnp.nan, arguments[4][0]["o"]))
        assert_same(run(held, arguments, inputs=inputs, cotangents=cotangents), was, others)
        # At a document's first token and in padding, in the second chunk.
        found = run(held, arguments, inputs=planted(arguments[0], name, 10, value))
        assert np.isnan(found[0][0, 10:23]).all()
        assert_same(found, was, others)
        found = run(held, arguments, inputs=planted(arguments[0], name, 25, value))
        assert_same(found, was, slice(None))
        # In the document of the last token.
        found = run(held, arguments, inputs=planted(arguments[0], name, 33, value))
        assert np.isnan(found[1]).all()
        assert np.isnan(found[0][0, 33:]).all()
        np.testing.assert_array_equal(found[0][0, ids < 3], was[0][0, ids < 3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cotangent_or_a_state_that_is_not_finite(kind):
    held = held_of(kind)
    arguments = held.draw(IDS)
    was = run(held, arguments)
    for value in VALUES:
        cotangents = planted(arguments[4][0], "o", TOKEN, value)
        found = run(held, arguments, cotangents=cotangents)
        assert_same(found, was, np.asarray(IDS[0]) != 2)
        for name, gradient in found[2].items():
            bad_T = ~np.isfinite(gradient[0].reshape(IDS.shape[1], -1)).all(axis=1)
            assert list(np.flatnonzero(bad_T)) == [TOKEN] * (name == "q"), name
        np.testing.assert_array_equal(found[3], was[3])
        state = arguments[3].s_BHKV.at[0, 0, 0, 0].set(value)
        found = run(held, arguments, state=state)
        assert np.isnan(found[0][0, :10]).all()
        assert_same(found, was, np.asarray(IDS[0]) != 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SUBJECTS)
def test_law_8_on_more_draws(kind):
    held = Held(SUBJECTS[kind][1], np.random.default_rng(8), time=38)
    for _ in range(12):
        held.check_contained()


def unseen(module, kernel):
    """The kernel, finding nothing that is not finite."""
    original = getattr(module, kernel)

    def blind(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tpu_nonfinite, "any_nonfinite", lambda *blocks: jnp.asarray(False))
            original(*arguments)

    return blind


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ("_forward_kernel", "_backward_kernel"))
@pytest.mark.parametrize("kind", FAST)
def test_a_kernel_that_does_not_look_is_caught(kind, kernel, monkeypatch):
    module, subject = SUBJECTS[kind]
    monkeypatch.setattr(module, kernel, unseen(module, kernel))
    held = Held(subject, np.random.default_rng(1), time=38)
    with pytest.raises(AssertionError, match="in another document changes a result|finite outputs"):
        for _ in range(6):
            held.check_contained()


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
def test_one_number_is_found_wherever_it_is(dtype):
    """Among the largest finite numbers, in blocks that do not fill registers too."""
    largest = float(jnp.finfo(dtype).max)
    draw = np.random.default_rng(2)

    @jax.jit
    def look(*blocks):
        def kernel(*refs):
            *blocks, out = refs
            found = tpu_nonfinite.any_nonfinite(*(block[...] for block in blocks))
            out[...] = jnp.full(out.shape, jnp.where(found, 1.0, 0.0))

        shape = jax.ShapeDtypeStruct((8, 128), jnp.float32)
        return pl.pallas_call(kernel, out_shape=shape, interpret=True)(*blocks)

    shapes = ((128, 256), (16, 192), (64, 128))
    blocks = [np.asarray(draw.choice([0.0, largest, -largest], s)) for s in shapes]
    rows = np.asarray(draw.choice([0.0, 3e38], (2, 128)))
    blocks = [*(jnp.asarray(b, dtype) for b in blocks), jnp.asarray(rows, jnp.float32)]
    assert not look(*blocks).any()
    for number, value, _ in itertools.product(range(4), VALUES, range(8)):
        place = tuple(draw.integers(0, n) for n in blocks[number].shape)
        found = [b.at[place].set(value) if n == number else b for n, b in enumerate(blocks)]
        assert look(*found).all(), (number, place, value)


@pytest.mark.parametrize("kind", FAST)
def test_saved_names_spare_the_forward_kernel_in_the_backward_pass(kind):
    """With a remat policy that keeps its names, no output of the recomputed kernel is read."""
    op, names = kind.split(",")[0], ("states", "inverse", "errors")
    policy = jax.checkpoint_policies.save_only_these_names(*(f"{op}_{name}" for name in names))
    subject = SUBJECTS[kind][1]
    rng = np.random.default_rng(3)
    inputs = subject.inputs(rng, 1, 38, jnp.float32)

    @functools.partial(jax.checkpoint, policy=policy)
    def loss(inputs):
        return jnp.sum(subject.apply(inputs, {}, IDS, None, "pallas")[0]["o"])

    with kernels():
        read = kernels_read_again(loss, inputs)
    assert sorted(read.values()) == [False, True], read
    assert read[next(name for name in read if "backward" in name)]

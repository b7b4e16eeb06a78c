"""The whole model obeys the laws: packed = separate, causal, cached = parallel, scan = unrolled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.models.mixers import SequenceContext
from hybridlm.train.step import REMAT

PATTERNS = ["swa full rec", "sink wide", "full", "rec"]
BLOCKS = ["prenorm", "sandwich", "parallel"]
slow = pytest.mark.slow


def logits_of(model, params, tokens, ids, **options):
    module = model.bind(params)
    return module.logits(
        module.hidden(tokens, small.context(ids), dtype=tokens_dtype(params), **options)
    )


def tokens_dtype(params):
    return jax.tree.leaves(params)[0].dtype


def tokens_of(rng, shape):
    return jnp.asarray(rng.integers(0, 40, shape), jnp.int32)


TIME, DOCUMENTS = 24, 5
PIECES = [5, 1, 1, 1, 5, 1, 1, 1, 1, 1, 1, 5]


@functools.cache
def value_and_grad(pattern):
    """Jitted (sum of logits * probe, its gradients) in float64; compiled once per shape."""
    model, params = small.make(small.model_config(pattern), dtype=jnp.float64)

    @jax.jit
    def run(tokens, ids, positions, probe):
        def value(params):
            context = SequenceContext(ids, positions)
            module = model.bind(params)
            logits = module.logits(module.hidden(tokens, context, dtype=jnp.float64))
            return jnp.sum(logits * probe)

        return jax.value_and_grad(value)(params)

    return run


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_packed_equals_separate(pattern, seed):
    """Outputs and parameter gradients of packed documents equal those of each document alone."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        run = value_and_grad(pattern)
        cuts = np.sort(rng.choice(np.arange(1, TIME), DOCUMENTS - 1, replace=False))
        edges = [0, *cuts, TIME]
        tokens = rng.integers(0, 40, (1, TIME))
        probe = rng.standard_normal((1, TIME, 40))
        ids = 1 + np.searchsorted(cuts, np.arange(TIME), side="right")[None]
        packed = run(tokens, *small.context(ids)[:2], probe)
        # Each document starts a row of its own; the rest is padding with weight 0.
        alone_tokens = rng.integers(0, 40, (DOCUMENTS, TIME))
        alone_ids, alone_probe = np.zeros((DOCUMENTS, TIME), int), np.zeros((DOCUMENTS, TIME, 40))
        for i, (start, end) in enumerate(zip(edges, edges[1:])):
            alone_tokens[i, : end - start] = tokens[0, start:end]
            alone_ids[i, : end - start] = 1
            alone_probe[i, : end - start] = probe[0, start:end]
        alone = run(alone_tokens, *small.context(alone_ids)[:2], alone_probe)
        for a, b in zip(jax.tree.leaves(packed), jax.tree.leaves(alone)):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * float(jnp.abs(b).max() + 1))


@functools.cache
def logits_function(pattern):
    model, params = small.make(small.model_config(pattern))

    @jax.jit
    def run(tokens, ids, positions):
        return model.bind(params)(tokens, SequenceContext(ids, positions))

    return run


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_the_model_is_causal_and_ignores_padding(pattern, seed):
    """Changing tokens from t on changes nothing before t; changing padding changes nothing."""
    rng = np.random.default_rng(seed)
    run = logits_function(pattern)
    tokens, ids = rng.integers(0, 40, (2, TIME)), small.random_segments(rng, 2, TIME)
    context = small.context(ids)
    t = int(rng.integers(1, TIME))
    later = np.concatenate([tokens[:, :t], rng.integers(0, 40, (2, TIME - t))], axis=1)
    before, after = run(tokens, *context[:2]), run(later, *context[:2])
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    repadded = run(np.where(ids == 0, rng.integers(0, 40, (2, TIME)), tokens), *context[:2])
    real = (ids != 0)[:, :, None]
    np.testing.assert_array_equal(np.where(real, before, 0), np.where(real, repadded, 0))


@pytest.mark.parametrize(
    "pattern, block",
    [(p, "prenorm") for p in PATTERNS]
    + [pytest.param("swa full rec", b, marks=slow) for b in BLOCKS[1:]],
)
def test_cached_decoding_equals_the_forward_pass(pattern, block):
    """Prefill in pieces and token-by-token decoding give the logits of the parallel form."""
    rng = np.random.default_rng(0)
    config = small.model_config(pattern, block=block, depth=len(pattern.split()) + 1)
    with jax.enable_x64(True):
        model, params = small.make(config, dtype=jnp.float64)
        assert TIME == sum(PIECES)
        tokens, ids = tokens_of(rng, (2, TIME)), small.random_segments(rng, 2, TIME)
        context = small.context(ids)
        expected = jax.jit(lambda p: logits_of(model, p, tokens, ids))(params)
        extend = jax.jit(
            lambda tokens, context, state: model.bind(params).extend(
                tokens, context, state, dtype=jnp.float64
            )
        )
        state, made, start = model.bind(params).init_decode(2, TIME, jnp.float64), [], 0
        for n in PIECES:
            part = slice(start, start + n)
            piece = SequenceContext(*(x[:, part] for x in context[:2]))
            logits, state = extend(tokens[:, part], piece, state)
            made.append(logits)
            start += n
        real = (ids != 0)[:, :, None]
        made = jnp.concatenate(made, axis=1)
        np.testing.assert_allclose(np.where(real, made, 0), np.where(real, expected, 0), atol=1e-10)


@pytest.mark.parametrize("pattern, unlimited", [("swa full", False), ("swa rec", True)])
def test_logits_past_the_capacity_are_nan(pattern, unlimited):
    """With capacity 8, the ninth token of a document is NaN if a layer would attend to the first.

    A new document has the full capacity again.
    """
    model, params = small.make(small.model_config(pattern))
    extend = jax.jit(lambda *args: model.bind(params).extend(*args))
    state, nans = model.bind(params).init_decode(1, 8), []
    for position in [*range(10), 0, 1]:
        ids = jnp.full((1, 1), 1 if len(nans) < 10 else 2)
        context = SequenceContext(ids, jnp.full((1, 1), position))
        logits, state = extend(jnp.ones((1, 1), jnp.int32), context, state)
        nans.append(bool(jnp.isnan(logits).all()))
        assert nans[-1] or jnp.isfinite(logits).all()
    assert nans == [False] * 8 + [not unlimited] * 2 + [False] * 2


@pytest.mark.parametrize("block", ["prenorm", *(pytest.param(b, marks=slow) for b in BLOCKS[1:])])
def test_scan_equals_unrolled(block):
    """The scanned unit gives the same logits as its layers one by one."""
    config = small.model_config("swa rec", depth=6, block=block, prefix="full", suffix="full")
    model, params = small.make(config)
    tokens = tokens_of(np.random.default_rng(1), (2, 16))
    ids = np.ones((2, 16), int)
    scanned = jax.jit(lambda p: logits_of(model, p, tokens, ids, scan=True))(params)
    unrolled = jax.jit(lambda p: logits_of(model, p, tokens, ids, scan=False))(params)
    np.testing.assert_allclose(scanned, unrolled, rtol=1e-4, atol=1e-4)


def test_program_size_does_not_grow_with_depth():
    """The HLO at depth 48 has the same size as at depth 6."""

    def program(depth):
        model, params = small.make(small.model_config("swa full", depth=depth))
        tokens = jnp.zeros((1, 16), jnp.int32)
        ids = np.ones((1, 16), int)
        loss = jax.grad(lambda p: jnp.sum(logits_of(model, p, tokens, ids)))
        return len(jax.jit(loss).lower(params).as_text().splitlines())

    shallow, deep = program(6), program(48)
    assert deep <= 1.05 * shallow, f"{deep} lines at depth 48, {shallow} at depth 6"


@pytest.mark.parametrize("remat", ["dots", "full", "unit"])
def test_remat_changes_no_gradient(remat):
    model, params = small.make(small.model_config("swa rec", depth=6, prefix="rec", suffix="swa"))
    tokens = tokens_of(np.random.default_rng(2), (2, 12))
    ids = np.ones((2, 12), int)

    def grad(**options):
        loss = lambda p: jnp.sum(jnp.sin(logits_of(model, p, tokens, ids, **options)))  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(jax.tree.leaves(grad()), jax.tree.leaves(grad(remat=REMAT[remat]))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_works_in_nnx_tree_mode():
    """Models build and run with graph mode off, which flax plans as its default."""
    nnx.set_graph_mode(False)
    try:
        model, params = small.make(small.model_config(depth=6))
        tokens, ids = jnp.zeros((1, 8), jnp.int32), np.ones((1, 8), int)
        logits = jax.jit(lambda p: logits_of(model, p, tokens, ids))(params)
    finally:
        nnx.set_graph_mode(True)
    assert bool(jnp.all(jnp.isfinite(logits)))


def test_bfloat16_is_near_float32():
    model, params = small.make(small.model_config())
    tokens, ids = tokens_of(np.random.default_rng(3), (2, 32)), np.ones((2, 32), int)

    def logits(params, dtype):
        module = model.bind(params)
        return module.logits(module.hidden(tokens, small.context(ids), dtype=dtype))

    exact = jax.jit(lambda p: logits(p, jnp.float32))(params)
    rough = jax.jit(lambda p: logits(p, jnp.bfloat16))(params)
    error = float(jnp.sqrt(jnp.mean((exact - rough) ** 2) / jnp.mean(exact**2)))
    assert rough.dtype == jnp.float32
    assert error < 0.03, f"relative RMS error {error}"

"""Both models in one: exact at both ends, no swap compiles, and what diverges is not seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.distill.compose import composed
from hybridlm.distill.selection.branches import branches
from hybridlm.distill.selection.compilations import Compilations
from hybridlm.distill.transfer import transfer
from hybridlm.errors import UserError
from hybridlm.evals.scoring import likeliest
from hybridlm.models.mixers import SequenceContext
from kernels_pallas import dispatch
from tests.distill.subjects import FULL, opened, teacher, tokens, with_params
from tests.models.small import model_config


@pytest.fixture(autouse=True)
def reference_forms():
    """Uses the reference forms, which compile fastest."""
    with dispatch.auto_means("reference"):
        yield


@pytest.fixture(
    scope="module",
    params=[
        dict(kind="attention", window=5),
        pytest.param(dict(kind="lightning"), marks=pytest.mark.slow),
        pytest.param(dict(kind="gdn"), marks=pytest.mark.slow),
    ],
    ids=lambda mixer: mixer["kind"],
)
def pair(request):
    ours = teacher()
    return ours, transfer(ours, request.param).student


@pytest.fixture(scope="module")
def both(pair):
    return branches(*pair)


@pytest.mark.slow
@pytest.mark.parametrize("kept", ((1, 2), (3,)))
def test_logits_are_bit_for_bit_those_of_the_composed_model(pair, both, kept):
    x = tokens()
    np.testing.assert_array_equal(both.opened(kept).logits(x), composed(*pair, kept).logits(x))


def test_both_ends_are_bit_for_bit_the_two_models(pair, both):
    assert both.layers == (0, 1, 2, 3)
    x, (ours, theirs) = tokens(), pair
    np.testing.assert_array_equal(both.opened(both.layers).logits(x), ours.logits(x))
    np.testing.assert_array_equal(both.opened(()).logits(x), theirs.logits(x))


@pytest.mark.slow
def test_models_of_several_mixers_keep_their_other_layers():
    mixers = dict(swa=dict(FULL, window=5), full=FULL)
    ours = opened(model_config("swa full", depth=4, prefix="full", mixers=mixers))
    theirs = transfer(ours, dict(kind="gdn"), layers=[0, 2]).student
    both = branches(ours, theirs)
    assert both.layers == (0, 2)
    for kept in ((), (0,), (0, 2)):
        x = tokens()
        whole = composed(ours, theirs, set(kept))
        np.testing.assert_allclose(both.opened(kept).logits(x), whole.logits(x), rtol=0, atol=2e-6)


def test_no_swap_compiles_anything(both):
    x = tokens()
    ids, positions = np.ones_like(x), np.tile(np.arange(x.shape[1]), (len(x), 1))

    def evaluate(kept):
        model = both.opened(kept)
        best = likeliest(model.model, model.params, x, ids, positions)
        return np.asarray(model.logits(x)), best

    evaluate(())
    with Compilations() as compilations:
        found = [evaluate(kept) for kept in ((0,), (1, 3), (0, 1, 2, 3), (2,))]
    assert compilations.count == 0
    assert all((a[0] != b[0]).any() for a, b in zip(found, found[1:])), "the swaps did nothing"
    with compilations:
        jax.jit(lambda x: x + 2)(jnp.ones(3)).block_until_ready()
    assert compilations.count > 0, "compilations are not counted"


def decode(model):
    """A program: logits of x, in three parts."""

    @jax.jit
    def run(params, x):
        module = model.bind(params)
        state, logits = module.init_decode(len(x), 9), []
        for first, end in ((0, 5), (5, 6), (6, 9)):
            new, state = module.extend(x[:, first:end], whole(first, end), state)
            logits.append(new)
        return jnp.concatenate(logits, axis=1)

    return run


@pytest.mark.slow
def test_decoding_gives_the_logits_of_the_parallel_form(pair, both):
    x = jnp.asarray(tokens(time=9))
    run, teachers = decode(both.model), decode(pair[0].model)
    for kept in ((), (1,), (0, 1, 2, 3)):
        hybrid = both.opened(kept)
        np.testing.assert_allclose(run(hybrid.params, x), hybrid.logits(x), atol=2e-5)
    np.testing.assert_array_equal(run(hybrid.params, x), teachers(pair[0].params, x))


def whole(first, end):
    ids = jnp.ones((2, end - first), jnp.int32)
    return SequenceContext(ids, jnp.broadcast_to(jnp.arange(first, end), ids.shape))


@pytest.mark.slow
def test_gates_mix_the_two_outputs():
    """A model of one layer without feed-forward is linear in alpha before the final norm."""
    ours = opened(model_config("full+none", mixers=dict(full=FULL)))
    both = branches(ours, transfer(ours, dict(kind="attention", window=3)).student)
    x = tokens()

    @jax.jit
    def stream(alpha):
        module = both.model.bind(both.with_gates(jnp.asarray([alpha], jnp.float32)))
        ids = jnp.ones(x.shape, jnp.int32)
        context = SequenceContext.of(ids)
        apply = lambda block, i, x, c, *_: (block(x, c), None, None)  # noqa: E731
        return module.apply_layers(apply, module.embed(x), context)[0]

    student, half, teachers = stream(0.0), stream(0.3), stream(1.0)
    np.testing.assert_allclose(half, 0.7 * student + 0.3 * teachers, atol=1e-6)


def test_a_student_layer_that_is_not_finite_is_not_seen_where_it_is_not_used(pair, both):
    ours, theirs = pair
    layer = jax.tree.map(lambda p: np.full_like(p, np.nan), theirs.model.layer(theirs.params, 2))
    layer = theirs.model.layer(theirs.params, 2) | {"mixer": layer["mixer"]}
    broken = with_params(theirs.model, theirs.model.with_layer(theirs.params, 2, layer))
    damaged, x = dataclasses.replace(both, params=branches(ours, broken).params), tokens()
    np.testing.assert_array_equal(damaged.opened((1, 2)).logits(x), both.opened((1, 2)).logits(x))
    assert np.isnan(damaged.opened((1,)).logits(x)).all()


@pytest.mark.slow
def test_layers_that_are_equal_are_no_candidates():
    ours = teacher()
    both = branches(ours, transfer(ours, dict(kind="gdn"), layers=[1, 3]).student)
    assert both.layers == (1, 3)
    with pytest.raises(UserError, match="the same mixers: there is nothing to select"):
        branches(ours, ours)


def test_a_student_whose_other_parameters_were_trained_is_refused(pair):
    ours, theirs = pair
    params = theirs.params | {"final_norm": {"scale": theirs.params["final_norm"]["scale"] + 1}}
    with pytest.raises(UserError, match="the student's final_norm.scale is not the teacher's"):
        branches(ours, with_params(theirs.model, params))

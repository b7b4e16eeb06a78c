"""Receptive fields bounded at inference equal those of models built with the window."""

import dataclasses

import jax
import known
import numpy as np
import pytest
import small

from hybridlm import probes
from hybridlm.models.params import Model
from hybridlm.probes import Prompts


@pytest.fixture(scope="module")
def hybrid():
    model, rng = Model.of(small.model_config("full rec", depth=2)), np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: (0.5 * rng.standard_normal(p.shape)).astype(p.dtype), model.abstract
    )
    return model, params, known.packed(known.prompts(3), 4)


def assert_close(entry, want):
    assert (entry.nll, entry.accuracy, entry.exact, entry.other_nll) == pytest.approx(
        want, abs=1e-5
    )


def test_a_bounded_layer_equals_one_built_with_that_window(hybrid):
    model, params, made = hybrid
    table = probes.receptive_field(model, params, made, [0], [5])
    free, bounded = table
    config = dataclasses.replace(
        model.config, mixers={**small.MIXERS, "full": {**small.MIXERS["full"], "window": 5}}
    )
    assert_close(bounded, probes.answers(Model.of(config), params, made))
    assert_close(free, probes.answers(model, params, made))
    assert abs(bounded.nll - free.nll) > 1e-3
    assert (bounded.layers, bounded.mixers, bounded.window, bounded.how) == (
        (0,),
        ("full",),
        5,
        "window",
    )
    assert (free.layers, free.window, free.how) == ((), None, None)


@pytest.mark.slow
def test_a_recurrence_is_bounded_by_its_context(hybrid):
    model, params, made = hybrid
    free, bounded, wide = probes.receptive_field(model, params, made, [0, 1], [3, 99])
    assert bounded.how == "context+window" and bounded.mixers == ("full", "rec")
    assert abs(bounded.nll - free.nll) > 1e-3
    assert_close(wide, probes.answers(model, params, made))
    _, one = probes.receptive_field(model, params, made, [0], [5])
    _, other = probes.receptive_field(model, params, made, [0], [5], truncate=True)
    assert (one.how, other.how) == ("window", "context")
    assert_close(other, (one.nll, one.accuracy, one.exact, one.other_nll))


def test_tokens_before_the_window_are_not_copied():
    """Each answer token copies the token 12 positions back, which a window of 13 just reaches."""
    model, params = known.induction()
    made = known.prompts(4)
    by_window = {
        e.window: e.accuracy for e in probes.receptive_field(model, params, made, [1], [12, 13])
    }
    assert by_window == {None: 1, 12: 0, 13: 1}


def test_bad_layers_windows_and_rows_are_refused(hybrid):
    model, params, made = hybrid
    with pytest.raises(ValueError, match="no layer 2: the model has layers 0 to 1"):
        probes.receptive_field(model, params, made, [2], [5])
    with pytest.raises(ValueError, match="at least 1 token, the query's own, not 0"):
        probes.receptive_field(model, params, made, [0], [0])
    with pytest.raises(ValueError, match="no next token to predict"):
        Prompts(*(x for x in dataclasses.astuple(made)[:3]), made.rows_NQ + 99, made.needle_NT)

"""LongPPL equals its definition, computed token by token on a tiny random model."""

import math
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
import small

from hybridlm.errors import UserError
from hybridlm.evals import longppl
from hybridlm.models.mixers import SequenceContext


@pytest.fixture(scope="module")
def models():
    """The model under test and an evaluator, with one vocabulary."""
    return small.make(small.model_config("swa full rec")), small.make(
        small.model_config("full"), seed=5
    )


PROGRAMS = {}  # by model, compiled once


def direct(model, params, tokens, start, index):
    """ln p(tokens[index] | tokens[start:index]), from a forward pass over these tokens alone."""
    count = index - start
    row, ids = np.zeros((2, 1, 32), np.int32)
    row[0, :count], ids[0, :count] = tokens[start:index], 1
    if id(model) not in PROGRAMS:
        positions = np.arange(32, dtype=np.int32)[None]
        PROGRAMS[id(model)] = jax.jit(
            lambda p, row, ids: model.bind(p)(row, SequenceContext(ids, positions))[0]
        )
    logits = PROGRAMS[id(model)](params, row, ids)[count - 1]
    return float(jax.nn.log_softmax(logits)[tokens[index]])


def direct_start(index, trunc_len, sliding_window):
    """The start of the truncated context, by a loop as in the definition."""
    start = 0
    while index - (start + sliding_window) >= trunc_len:
        start += sliding_window
    return start


def test_key_tokens_and_longppl_equal_hand_computed_values():
    long, short = np.array([-1.0, -1.0, -3.0, -0.5, -1.0]), np.array([-3.5, -2.5, -9, -2.5, -3.0])
    key = longppl.key_tokens(long, short)
    # gains 2.5, 1.5, 6 (but ln p is below beta), 2.0 (not above alpha), 2.0
    assert key.tolist() == [True, False, False, False, False]
    key = longppl.key_tokens(long, short, alpha=1.4, beta=-4)
    assert key.tolist() == [True] * 5
    result = longppl.longppl(np.array([-1.0, -2.0, -4.0]), np.array([True, False, True]))
    assert result.longppl == pytest.approx(math.exp(2.5))
    assert result.ppl == pytest.approx(math.exp(7 / 3))
    assert (result.key_tokens, result.tokens) == (2, 3)
    assert math.isnan(longppl.longppl(np.array([-1.0]), np.array([False])).longppl)
    with pytest.raises(ValueError, match="shape"):
        longppl.longppl(np.zeros(3), np.zeros(2, bool))


@pytest.mark.parametrize("trunc_len, sliding_window", [(4, 1), (4, 3), (7, 8), (4096, 1024)])
def test_truncated_contexts_equal_the_definition(trunc_len, sliding_window):
    index = np.arange(1, 12_000 if trunc_len > 100 else 60)
    starts = longppl.truncated_start(index, trunc_len, sliding_window)
    for i in index[:: max(1, len(index) // 60)]:
        assert starts[i - 1] == direct_start(i, trunc_len, sliding_window)
    cut = starts > 0
    assert np.all((index - starts)[cut] >= trunc_len)
    assert np.all(index - starts < trunc_len + sliding_window)


@pytest.mark.parametrize("given", [False, True])
def test_a_models_longppl_equals_direct_computation(models, given):
    """Without and with an evaluator, on two documents; the thresholds give some key tokens."""
    (model, params), evaluator = models
    rng = np.random.default_rng(3)
    documents = [rng.integers(0, 40, 30), rng.integers(0, 40, 21)]
    alpha, beta = 0.05, -6.0
    judge, judge_params = evaluator if given else (model, params)
    terms, total = [], []
    for tokens in documents:
        for i in range(1, len(tokens)):
            start = direct_start(i, 6, 4)
            long = direct(judge, judge_params, tokens, 0, i)
            short = direct(judge, judge_params, tokens, start, i)
            assert (
                abs(long - short - alpha) > 1e-4
            )  # no gain is so near alpha that rounding matters
            own = direct(model, params, tokens, 0, i)
            total.append(own)
            if start and long - short > alpha and long > beta:
                terms.append(own)
    assert 3 <= len(terms) < len(total)
    result = longppl.model_longppl(
        model,
        params,
        documents,
        evaluator if given else None,
        trunc_len=6,
        sliding_window=4,
        alpha=alpha,
        beta=beta,
    )
    assert (result.key_tokens, result.tokens) == (len(terms), len(total))
    assert result.longppl == pytest.approx(math.exp(-np.mean(terms)), rel=1e-4)
    assert result.ppl == pytest.approx(math.exp(-np.mean(total)), rel=1e-4)


def test_short_log_probs_do_not_depend_on_the_batch(models):
    (model, params), _ = models
    tokens = np.random.default_rng(4).integers(0, 40, 60)
    one, many = (
        longppl.short_log_probs(model, params, tokens, 5, 4, batch=batch) for batch in (1, 8)
    )
    np.testing.assert_allclose(one, many, atol=1e-4)


def test_documents_that_are_too_short_are_refused(models):
    (model, params), _ = models
    with pytest.raises(UserError, match="needs 11 tokens and the longest has 10"):
        longppl.model_longppl(model, params, [np.zeros(10, int)], trunc_len=6, sliding_window=4)
    with pytest.raises(UserError, match="must be at least 1"):
        longppl.model_longppl(model, params, [np.zeros(10, int)], trunc_len=0)

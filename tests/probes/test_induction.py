"""Induction scores, on heads that are known by construction."""

import known
import numpy as np
import pytest

from hybridlm.probes import Prompt, Prompts, induction_heads, repeated_prompts


def test_an_induction_head_scores_1_and_a_uniform_one_its_share():
    """Tokens are different within a copy, so that one earlier token alone is the right one."""
    rng, period = np.random.default_rng(0), known.VOCAB - 3
    rows = [np.tile(rng.permutation(known.VOCAB)[:period], 2) for _ in range(5)]
    made = Prompts.of([Prompt(row, [(1, period)], (period + 1, 2 * period)) for row in rows])
    table = induction_heads(*known.induction(), made, batch=2)
    scores = {(e.layer, e.head): e.score for e in table}
    assert set(scores) == {(0, 0), (1, 0), (1, 1)}
    assert scores[1, 0] == pytest.approx(1, abs=1e-3)
    keys = 1 + np.arange(period, 2 * period - 1)
    assert scores[1, 1] == pytest.approx((1 / keys).mean(), rel=1e-5)
    assert scores[0, 0] == 0  # the window of 2 does not reach the first copy


@pytest.mark.parametrize("length", [4, 31, 64])
def test_prompts_are_random_tokens_twice(length):
    made = repeated_prompts(50, length, 6, seed=3, without={0, 49})
    period = length // 2
    assert made.tokens_NT.shape == (6, 2 * period)
    np.testing.assert_array_equal(made.tokens_NT[:, :period], made.tokens_NT[:, period:])
    assert made.tokens_NT.min() >= 1 and made.tokens_NT.max() <= 48
    np.testing.assert_array_equal(made.rows_NQ[0], np.arange(period, 2 * period - 1))
    again = repeated_prompts(50, length, 6, seed=3, without={0, 49})
    np.testing.assert_array_equal(made.tokens_NT, again.tokens_NT)

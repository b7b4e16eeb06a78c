"""The work of a batch counts its documents only: against counts of pairs and kernels by hand."""

import jax
import numpy as np
import pytest
import small

from hybridlm.models.accounting import document_lengths, train_flops_per_token, work_counter
from hybridlm.models.params import Model


def test_lengths_are_those_of_the_runs_of_an_id():
    ids = np.array([[1, 1, 1, 2, 0, 0], [3, 4, 4, 4, 4, 0], [5, 5, 6, 6, 5, 5], [0] * 6])
    assert document_lengths(ids).tolist() == [3, 1, 1, 4, 2, 2, 2]


@pytest.mark.parametrize("seed", range(3))
def test_attention_counts_the_pairs_that_see_each_other(seed):
    """Forward: 2 per kernel entry and token, 4 x head_dim per head and visible pair; 3 x in all."""
    window, heads, head_dim = 5, 4, 8
    model = Model.of(small.model_config("swa full"))
    rng = np.random.default_rng(seed)
    ids = small.random_segments(rng, 3, 40)
    pairs = {"full": 0, "swa": 0}
    for row in ids:
        for t, s in np.argwhere((row[:, None] == row[None]) & (row[:, None] != 0)):
            pairs["full"] += s <= t
            pairs["swa"] += t - window < s <= t
    kernels = sum(
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(model.abstract["unit"])
        if jax.tree_util.keystr(path).endswith("['kernel']")
    )
    embedding = model.abstract["embedding"].size
    tokens = int((ids != 0).sum())
    by_hand = 2 * tokens * (kernels + embedding) + 4 * head_dim * heads * sum(pairs.values())
    work = work_counter(model)(ids)
    assert work.tokens == tokens
    assert work.flops == pytest.approx(3 * by_hand, rel=1e-12)


def test_whole_rows_of_one_document_take_the_flops_of_padded_counting():
    model = Model.of(small.model_config("swa full rec"))
    work = work_counter(model)(np.ones((3, 64), np.int32))
    assert work.tokens == 192
    assert work.flops == pytest.approx(192 * train_flops_per_token(model, 64), rel=1e-12)


def test_rows_of_padding_take_nothing():
    assert work_counter(Model.of(small.model_config("rec")))(np.zeros((2, 8), np.int32)) == (0, 0)

"""Probes on finished runs of the experiment: their prompts, and the table that a run gives."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import probed, runs
from experiments.large_window_laziness.arms import ARMS
from hybridlm.analysis.figures.probes import PANELS
from hybridlm.errors import UserError

ARM = ARMS["main"]["w4-rope"]


def test_the_class_of_a_prompt_is_the_symbol_of_its_answer():
    """It follows the query's earlier occurrence, and every symbol of the class is as likely."""
    prompts, labels = probed.classified(ARM, 200)
    first = prompts.rows_NQ[:, 0]
    answer = prompts.tokens_NT[np.arange(200), first + 1]
    np.testing.assert_array_equal(answer, ARM.scale.task.local + labels)
    assert np.bincount(labels, minlength=probed.CLASSES).min() > 10
    for tokens_T, query in zip(prompts.tokens_NT, first):
        (places,) = np.nonzero(tokens_T[:query] == tokens_T[query])
        assert len(places) and (tokens_T[places + 1] == tokens_T[query + 1]).all()


def test_a_run_that_is_not_complete_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no complete run of w4-rope"):
        runs.final(ARM, tmp_path)
    with pytest.raises(UserError, match="no arm 'w5'"):
        probed.main(["--workdir", str(tmp_path), "--arms", "w5"])


def test_the_committed_figure_is_that_of_the_committed_table(tmp_path):
    folder = probed.RESULTS / "main"
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "probes.tsv").write_text((folder / "probes.tsv").read_text())
    assert probed.main(["--figure", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "main" / "probes.svg").read_text() == (folder / "probes.svg").read_text()
    rows = probed.rows_of(folder / "probes.tsv")
    assert {row["probe"] for row in rows} == set(PANELS)

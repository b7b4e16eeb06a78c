"""Summaries and maps show the newest checkpoint that was evaluated, of one set of weights."""

import json
import random

import numpy as np

from hybridlm.analysis import Run, Runs, figures, newest
from hybridlm.analysis.measurements import measured_at
from hybridlm.analysis.report import write_report
from hybridlm.analysis.tables import frame, records_of
from tests.analysis.folders import evaluation, head_records, write_run


def evaluated(run, step, accuracy, weights="raw"):
    """Writes an evaluation of a checkpoint into a folder of its own."""
    folder = run / f"eval-{weights}-{step}"
    folder.mkdir()
    written = evaluation(step, {32: [accuracy] * 2})
    (folder / "eval.json").write_text(json.dumps({**written, "weights": weights}))


def cells_of(figure):
    return np.asarray(figure.axes[0].collections[0].get_array()).ravel().tolist()


def test_the_largest_step_counts_whatever_its_folder_is_called(tmp_path):
    """Steps 10,000 and 2,000: the folder of the older one is last by name."""
    run, accuracy = write_run(tmp_path / "run", []), random.random()
    evaluated(run, 10_000, accuracy)
    evaluated(run, 2000, 0.0)
    evaluated(run, 12_000, 0.1, "ema")
    (row,) = Runs(run).summary_rows()
    assert row["needle_accuracy_32"] == accuracy
    opened = Run(run)
    assert cells_of(figures.needle_map(opened.by_depth())) == [accuracy] * 2
    assert cells_of(figures.task_map(opened.evaluations())) == [accuracy]
    assert cells_of(figures.needle_map(newest(opened.depth_rows(), "ema"))) == [0.1] * 2
    page = write_report(run).read_text()
    for said in ("step 10,000, raw weights", "step 12,000, ema weights"):
        assert f"<b>Needle in a haystack: {said}</b>" in page


def test_each_run_task_and_length_has_its_own_newest_step():
    """Rows of one file stay together; a step that was measured twice counts as in the last folder."""
    shape = [("a", "vt", 32, 4, "x"), ("a", "vt", 32, 4, "y"), ("a", "vt", 32, 4, "y")]
    shape += [("a", "vt", 64, 2, "x"), ("b", "vt", 32, 2, "x"), ("b", "vt", 32, 1, "y")]
    rows = [dict(zip(("run", "task", "length", "step", "folder"), of)) for of in shape]
    assert newest(rows) == [rows[i] for i in (1, 2, 3, 4)]
    assert records_of(newest(frame(rows))) == newest(rows)
    assert newest(rows, "ema") == [] and measured_at(rows) == "steps 1 to 4, raw weights"
    without = [dict(task="vt", length=32, step=None, weights="ema")]  # a model folder
    assert newest(without) == without and measured_at(without) == "ema weights"


def test_a_head_that_was_measured_twice_counts_once():
    """As it was measured last, with the raw weights."""
    first, last = (np.random.default_rng().random((2, 3)).tolist() for _ in range(2))
    averaged = [{**r, "weights": "ema"} for r in head_records(4, first)]
    rows = [*head_records(4, first), *head_records(4, last), *averaged]
    for table in (rows, frame(rows)):
        shown = cells_of(figures.head_map(table))
        np.testing.assert_allclose(np.reshape(shown, (2, 3))[::-1], last)

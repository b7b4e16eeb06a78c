"""The report of a run with a teacher shows what was learned from it: errors by layer, or the divergence."""

import re

import numpy as np
import pytest

from hybridlm.analysis import figures
from hybridlm.analysis.report import write_report
from hybridlm.analysis.run import Run
from tests.analysis.test_report import FACTS, eval_record, make, train_record
from tests.analysis.test_report_page import made_by, run_code


def distilled(step, errors, skipped=0.0):
    """A record of blockwise distillation; it has no bits per byte."""
    record = train_record(step, relative_error=0.9 - step / 100, layers_skipped=skipped)
    record |= {"of_teacher_forward": 0.25} | {f"mse_layer_{i}": x for i, x in errors.items()}
    return {k: v for k, v in record.items() if k != "bits_per_byte"}


@pytest.fixture
def blockwise(root, tmp_path):
    records = [FACTS, distilled(4, {0: 2.0, 2: 0.5}), distilled(6, {0: 1.5, 2: "NaN"}, 1.0)]
    return make(root, tmp_path / "run", [*records, distilled(8, {0: 1.0, 2: 0.75})])


def test_the_error_of_each_layer_is_shown(blockwise):
    page = write_report(blockwise).read_text()
    section = re.search(r"<h2>Distillation</h2>(.*?)<h2>", page, re.DOTALL)[1]
    assert "<b>0.82</b><span>relative squared error" in section
    assert "<b>1 of 2</b><span>layers whose squared error fell" in section
    assert "<b>25%</b><span>of the tokens a second of the teacher" in section
    assert "In 1 of 3 recorded steps up to 1 layers were not finite" in section
    rows = re.findall(r"<tr><td[^>]*>([02])</td><td>(\w+)</td>(.*?)</tr>", section)
    mixers = [name for name, _ in Run(blockwise).config.model.layer_mixers()]
    assert [(int(layer), name) for layer, name, _ in rows] == [(0, mixers[0]), (2, mixers[2])]
    numbers = [re.findall(r">([\d.]+)<", cells) for _, _, cells in rows]
    assert numbers == [["2", "1", "0.5"], ["0.5", "0.75", "1.5"]]


def test_the_code_under_its_figures_makes_them(blockwise):
    codes = [code for code in made_by(write_report(blockwise).read_text()) if "error" in code]
    assert len(codes) == 2
    for code in codes:
        assert run_code(code).axes[0].lines, code


def test_a_layer_that_is_not_finite_leaves_a_gap(blockwise):
    table = Run(blockwise).layer_errors()
    assert table["layer"].tolist() == [0, 2] * 3 and table["step"].tolist() == [4, 4, 6, 6, 8, 8]
    lines = figures.layer_errors(table).axes[0].lines
    assert [line.get_label() for line in lines] == ["step 4", "step 6", "step 8"]
    np.testing.assert_array_equal(
        [x.get_ydata() for x in lines], [[2, 0.5], [1.5, np.nan], [1, 0.75]]
    )


def test_the_divergence_is_shown_beside_the_loss(root, tmp_path):
    records = [FACTS, train_record(4, kl=1.5), train_record(8, kl=0.125), eval_record(8)]
    page = write_report(make(root, tmp_path / "run", records)).read_text()
    assert "<b>0.125</b><span>nats a token of KL to the teacher" in page
    assert "Squared error" not in page and "<h2>Distillation</h2>" in page


def test_a_run_without_a_teacher_has_no_such_section(root, tmp_path):
    page = write_report(make(root, tmp_path / "run", [FACTS, train_record(8)])).read_text()
    assert "Distillation" not in page

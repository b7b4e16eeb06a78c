"""The report shows a run's records at any stage, escapes text, and loads nothing from outside."""

import dataclasses
import json
import re

import pytest

from hybridlm import config as configs
from hybridlm.analysis.figures import loss_curve, to_svg
from hybridlm.analysis.report import write_report
from hybridlm.analysis.run import Run
from hybridlm.config import to_dict
from hybridlm.errors import UserError
from tests.analysis.folders import ROOT

POSITIONS = [
    {"first": f, "last": la, "loss": 2.0 / (i + 1), "bits_per_byte": 3.0 / (i + 1), "targets": 8}
    for i, (f, la) in enumerate([(0, 0), (1, 1), (2, 3), (4, 7)])
]


def train_record(step, **changes):
    return {
        "kind": "train",
        "step": step,
        "loss": 3.0 - step / 10,
        "bits_per_byte": 4.0 - step / 10,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "skipped": 0,
        "skipped_in_row": 0,
        "tokens": 256 * step,
        "tokens_per_second": 4321.0,
        "mfu": 0.21,
        "step_seconds_p50": 0.5,
        "step_seconds_p90": 0.75,
        "data_wait_share": 0.01,
        "compile_seconds": 9.0,
        "memory_bytes": 2**30,
        **changes,
    }


def eval_record(step):
    return {
        "kind": "eval",
        "step": step,
        "loss": 1.2345,
        "bits_per_byte": 1.7891,
        "by_position": POSITIONS,
    }


FACTS = {
    "kind": "run",
    "step": 0,
    "parameters": 1234567,
    "flops_per_token": 7e6,
    "peak_flops": 2e11,
    "peak_source": "measured",
    "bigram": {"loss": 2.3, "bits_per_byte": 3.4321},
    "data": {
        "sources": {
            "a<b": {
                "weight": 1.0,
                "epochs": 0.5,
                "train": {"documents": 11, "tokens": 22222, "bytes": 33333},
                "heldout": {"documents": 3, "tokens": 444, "bytes": 555},
            }
        }
    },
}
SAMPLE = {"kind": "sample", "step": 8, "prompt": "<script>alert(1)</script>", "text": "a & b\x00"}
ENVIRONMENT = {
    "command": "hybridlm train --config 'x>y.py'",
    "started": "2026-01-01T00:00:00Z",
    "python": "3.12.1",
    "system": "Linux x86_64",
    "cpus": 2,
    "devices": ["cpu (cpu)"],
    "git_commit": "abc123",
    "git_changes": True,
    "packages": {"jax": "0.11.2"},
    "variables": {},
    "sessions": ["2026-01-01T00:00:00Z"],
}


def make(root, folder, records, environment=ENVIRONMENT, **model):
    config = configs.load(str(root / "configs" / "demo.py") + ":smoke")
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vocab_size=320, **model)
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    if environment:
        (folder / "environment.json").write_text(json.dumps(environment))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a finished run."""
    return write_report(finished_run(ROOT, tmp_path_factory.mktemp("finished"))).read_text()


@pytest.fixture
def finished(root, tmp_path):
    return finished_run(root, tmp_path)


def finished_run(root, folder):
    records = [FACTS, train_record(4), eval_record(4), train_record(8), eval_record(8), SAMPLE]
    return make(root, folder / "run", records)


def test_the_report_has_every_section_and_the_recorded_figures(page):
    for title in ("Training", "Model", "Data", "Sample", "Speed", "Reproduce"):
        assert f"<h2>{title}</h2>" in page
    for figure in ("1.789", "1.234", "3.432", "1.23 M", "4,321", "21.0%", "22,222", "750.0 ms"):
        assert figure in page, figure
    assert "abc123, with uncommitted changes" in page and "jax 0.11.2" in page
    assert page.count('<svg class="figure"') == 6
    assert "Unfinished" not in page


def test_the_moving_average_and_the_trained_part_are_shown(root, tmp_path):
    averaged = {**eval_record(8), "ema_loss": 1.1234, "ema_bits_per_byte": 1.6543}
    facts = {**FACTS, "trained_parameters": 345678}
    page = write_report(make(root, tmp_path / "run", [facts, averaged])).read_text()
    assert "<b>1.123</b><span>nats of the moving average" in page
    assert "<b>346 k</b><span>of them trained" in page


def test_text_of_the_run_is_escaped(page):
    assert page.count("<script") == 2  # the data and the script of the page
    assert "&lt;script&gt;alert(1)" in page and "a &amp; b" in page
    assert "a&lt;b" in page and "x&gt;y.py" in page


def test_nothing_is_loaded_from_outside(page):
    addresses = re.findall(
        r"""\s(?:src|href)\s*=\s*["']([^"'#][^"']*)""", page.replace("xlink:", "")
    )
    assert addresses == ["data:,"]
    assert not any(word in page for word in ("@import", "url(http", "fetch(", "import("))


@pytest.mark.parametrize("records", [[], [FACTS], [FACTS, train_record(2)]])
def test_the_report_of_an_unfinished_run_says_so(root, tmp_path, records):
    page = write_report(make(root, tmp_path / "run", records)).read_text()
    assert re.search(r"Unfinished: step \d of 8", page)
    assert "<h2>Model</h2>" in page


def test_figures_that_are_not_finite_are_left_out(root, tmp_path):
    broken = train_record(4, loss="nan", bits_per_byte="nan", grad_norm="inf", skipped=2)
    folder = make(root, tmp_path / "run", [FACTS, train_record(2), broken, eval_record(8)])
    assert "2 updates were skipped" in write_report(folder).read_text()


@pytest.mark.parametrize("last", [3.0, 0.3, 0.003, 0.0])
def test_the_figure_of_losses_shows_the_bigram_model_and_the_last_loss(last):
    """Also of answers, which may be learned to almost 0."""
    points = [dict(step=1, bits_per_byte=4.0), dict(step=2, bits_per_byte=last)]
    figure = loss_curve(points, points[1:], 3.8)
    low, high = figure.axes[0].get_ylim()
    assert low <= last <= high and high > 3.8
    to_svg(figure)


def test_equal_neighbours_of_a_deep_model_share_a_line(root, tmp_path):
    folder = make(root, tmp_path / "run", [FACTS, eval_record(8)], depth=32, pattern="swa*7 full")
    page = write_report(folder).read_text()
    assert "0-6" in page and "<td>24-30</td>" in page


def test_a_run_opens_with_its_records(finished):
    run = Run(finished)
    assert [r["step"] for r in run.train_records] == [4, 8]
    assert run.steps_done == 8 and run.sample == SAMPLE and run.checkpoints == []


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("config.json", "is damaged"),
        ("environment.json", "is damaged"),
        ("metrics.jsonl", "is damaged"),
    ],
)
def test_a_damaged_file_is_named(finished, name, sentence):
    (finished / name).write_text('{"a": \n')
    with pytest.raises(UserError, match=f"{name} {sentence}"):
        Run(finished)


@pytest.mark.parametrize("line", ["5", "null", '{"kind": "train"}', "[" * 10**5])
def test_a_line_that_is_not_a_record_is_named(finished, line):
    with (finished / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="metrics.jsonl is damaged in line 7"):
        Run(finished)


def test_an_incomplete_last_line_is_ignored(finished):
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert len(Run(finished).records) == 6


def test_the_report_says_what_was_read_of_each_source(root, tmp_path):
    """Of the sources in the config; half of the run's steps are half of its epochs."""
    (name,) = configs.load(str(root / "configs" / "demo.py") + ":smoke").data.sources
    batch_size = configs.load(str(root / "configs" / "demo.py") + ":smoke").data.batch_size
    train = {"documents": 12, "tokens": 4000, "bytes": 1, "windows": 8 * batch_size}
    source = {"weight": 1.0, "epochs": 1.0, "train": train, "heldout": train}
    facts = {**FACTS, "data": {"sources": {name: source}}}
    folder = make(root, tmp_path / "run", [facts, train_record(4)])
    page = write_report(folder).read_text()
    assert "What the run had seen after step 4" in page
    row = re.search(rf"<tr><td>{name}</td><td class=number>100.00%</td>.*?</tr>", page)[0]
    cells = re.findall(r"<td class=number>(.*?)</td>", row)
    assert cells == ["100.00%", "100.00%", f"{4 * batch_size:,}", "6", "2,000", "0.5"]

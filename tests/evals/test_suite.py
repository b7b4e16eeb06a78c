"""`hybridlm eval` on a tiny run: its files, its refusals and its haystacks."""

import subprocess
import sys

import numpy as np
import pytest

from hybridlm.analysis.evaluation import figures, read, table
from hybridlm.config import read_json
from hybridlm.data import open_pipeline
from hybridlm.evals import haystack
from hybridlm.runs import open_model, save_model

pytestmark = pytest.mark.xdist_group("suite")  # one run for all tests


@pytest.fixture(scope="module")
def place(tmp_path_factory, request):
    """A folder whose runs/demo is a finished smoke run of the demo."""
    root, top = request.config.rootpath, tmp_path_factory.mktemp("suite")
    for name in ("configs", "data", "docs", "experiments"):
        (top / name).symlink_to(root / name)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hybridlm.cli",
            "train",
            "--config",
            "configs/demo.py:smoke",
            "--workdir",
            "runs/demo",
            "--config.data.bigram_baseline=False",
        ],
        cwd=top,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return top


BAD = [
    (["--tasks", "needel"], "--tasks 'needel' is unknown: did you mean 'needle'?"),
    (["--tasks", ""], "--tasks '' is unknown"),
    (["--tasks", "vt,vt"], "each only once"),
    (
        ["--lengths", "12,x"],
        "--lengths must be whole numbers with commas between (4k is 4096), not '12,x'",
    ),
    (["--lengths", "1"], "--lengths must be at least 2"),
    (["--samples", "x"], "--samples must be a whole number, not 'x'"),
    (["--tasks", "fda"], "fda needs --recall, folder of the recall tasks' files"),
    (["--tasks", "mqar", "--pairs", "300"], "mqar: 300 pairs in 512 tokens"),
    (["--tasks", "mqar", "--pairs", "200", "--lengths", "1024"], "keys: --pairs must be at most "),
    (["--lengths", "100"], "needle does not fit 100 tokens"),
    (
        ["--tasks", "perplexity", "--lengths", "16M"],
        "perplexity does not fit 16,777,216 tokens: the run's held-out text has ",
    ),
    (["--samples", "0"], "--samples must be at least 1, not 0"),
    (["--seed", "-1"], "--seed must be at least 0, not -1"),
    (["--step", "3"], "3"),
    (["--tasks", "qa_1", "--squad", "gone.json"], "gone.json: cannot be read"),
    (["--tasks", "longppl"], "longppl does not fit 512 tokens: with --trunc_len 4096"),
    (
        ["--tasks", "longppl", "--trunc_len", "8", "--sliding_window", "8", "--evaluator", "gone"],
        "gone is no run",
    ),
]


@pytest.mark.parametrize("words, sentence", BAD, ids=[" ".join(w) for w, _ in BAD])
def test_an_impossible_evaluation_is_refused_in_one_sentence(
    place, monkeypatch, refusal, tmp_path, words, sentence
):
    monkeypatch.chdir(place)
    settings = {"--workdir": "runs/demo", "--tasks": "needle", "--lengths": "512"}
    settings |= {"--out": str(tmp_path / "out")} | dict(zip(words[::2], words[1::2]))
    assert sentence in refusal("eval", *(w for item in settings.items() for w in item))


def test_a_folder_without_a_run_is_refused(tmp_path, refusal):
    words = ["--tasks", "needle", "--lengths", "512", "--out", tmp_path / "out"]
    assert "is no run" in refusal("eval", "--workdir", tmp_path, *words)


def test_a_model_folder_runs_the_tasks_that_need_no_data(
    place, monkeypatch, command, refusal, tmp_path
):
    """Such tasks give the same records as on the run; the other tasks refuse the folder."""
    monkeypatch.chdir(place)
    save_model(open_model("runs/demo"), tmp_path / "model")
    records = []
    for workdir, out in (("runs/demo", tmp_path / "a"), (tmp_path / "model", tmp_path / "b")):
        words = ["--tasks", "needle,mqar", "--lengths", "512", "--samples", 1, "--out", out]
        code, _, err = command("eval", "--workdir", workdir, *words)
        assert code == 0, err
        records.append(read(out)["records"])
    assert records[0] == records[1]
    for task in ("perplexity", "longppl"):
        words = ["--tasks", task, "--lengths", "8k", "--out", tmp_path / "c"]
        said = refusal("eval", "--workdir", tmp_path / "model", *words)
        assert f"{task} reads the held-out data of a run, and" in said
    assert command("generate", "--workdir", tmp_path / "model", "--tokens", 3)[0] == 0


def test_haystacks_are_the_held_out_documents_of_a_run(place, monkeypatch):
    monkeypatch.chdir(place)
    config = read_json(place / "runs/demo/config.json")
    pipeline = open_pipeline(config.data, seed=0, workdir=place / "runs/demo")
    (split,) = pipeline.heldout_splits.values()
    offsets = split.document_offsets().tolist()
    held = {
        " ".join(pipeline.tokenizer.decode(split.read(a, b)[0]).split())
        for a, b in zip(offsets, offsets[1:])
    }
    assert held == {a.text for a in haystack.addresses() if a.heldout}


def test_tables_and_figures_from_records():
    """Accuracies by task and length; the needle's heat map has a row for each depth."""
    needle = [
        {
            "task": "needle",
            "length": n,
            "accuracy": 0.5,
            "samples": 4,
            "by_depth": [{"depth": d, "accuracy": d / 100, "samples": 2} for d in (0.0, 100.0)],
        }
        for n in (256, 1024)
    ]
    longppl = {"task": "longppl", "length": 512, "longppl": None, "key_tokens": 0, "tokens": 9}
    text = table([*needle, longppl])
    assert text.splitlines()[1].split() == ["needle", "50.0", "50.0"]
    assert text.splitlines()[-1].split() == ["none"]
    made = figures([*needle, longppl])
    assert set(made) == {"needle", "tasks"}
    (axes, _) = made["needle"].axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0%", "100%"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["256", "1,024"]
    np.testing.assert_array_equal(axes.collections[0].get_array(), [[0, 0], [1, 1]])

"""A run's records become typed tables with the run's progress; several runs are joined."""

import json
import random
import sys

import numpy as np
import pytest

from hybridlm.analysis import Run, Runs
from hybridlm.analysis.report import write_report
from hybridlm.analysis.runs import find_runs
from hybridlm.analysis.tables import frame, records_of
from hybridlm.config import to_dict
from hybridlm.errors import RunError, UserError
from hybridlm.storage import open_path
from tests.analysis.folders import (
    evaluation,
    head_records,
    smoke_config,
    write_lines,
    write_run,
)

FLOPS = 3.5e4  # a token
PER_STEP = smoke_config().tokens_per_step
FACTS = {"kind": "run", "step": 0, "flops_per_token": FLOPS, "parameters": 1000}


def training(step, loss, before=0):
    tokens = before + step * PER_STEP
    return {"kind": "train", "step": step, "loss": loss, "tokens": tokens, "skipped": 0}


def heldout(step, loss):
    places = [(0, 0, 1), (1, 3, 5), (4, 7, 0)]
    bins = [dict(first=f, last=t, loss=loss + f, targets=n) for f, t, n in places]
    return {"kind": "eval", "step": step, "loss": loss, "by_position": bins}


def test_the_tables_of_a_run(tmp_path):
    before = random.randrange(10**6)  # the tokens of a source that the run goes on from
    records = [FACTS, training(4, 3.0, before), heldout(4, 2.0), training(8, 2.5, before)]
    run = Run(write_run(tmp_path / "run", records))
    train = run.metrics()
    assert list(train.columns[:3]) == ["step", "tokens", "flops"]
    assert train.dtypes.astype(str).to_dict() == {
        **dict(step="int64", tokens="int64", flops="float64", loss="float64", skipped="int64")
    }
    assert train.tokens.tolist() == [before + 4 * PER_STEP, before + 8 * PER_STEP]
    assert train.flops.tolist() == [FLOPS * tokens for tokens in train.tokens]
    (evaluated,) = run.metrics("eval").to_dict("records")
    assert evaluated["tokens"] == before + 4 * PER_STEP and evaluated["loss"] == 2.0
    by_position = run.by_position()
    assert by_position["first"].tolist() == [0, 1] and by_position.loss.tolist() == [2.0, 3.0]
    assert run.metrics("sample").empty and run.probe_kinds == []


def test_probes_of_training_and_of_the_command_are_one_table(tmp_path):
    run = write_run(tmp_path / "run", [FACTS])
    scores = np.random.default_rng().random((2, 2, 3)).tolist()
    table = [r for step, of in zip((2, 4), scores) for r in head_records(step, of)]
    write_lines(run / "probes.jsonl", [*table, {"kind": "cost", "step": 4, "seconds": 0.1}])
    influence = [dict(kind="gradient_influence", step=4, first=0, last=0, influence="NaN")]
    write_lines(run / "probes" / "probes.jsonl", [*influence, *influence])
    run = Run(run)
    assert run.probe_kinds == ["retrieval_heads", "cost", "gradient_influence"]
    heads = run.probes("retrieval_heads")
    assert heads.tokens.tolist() == [PER_STEP * r["step"] for r in table]
    assert heads.mass.tolist() == [r["mass"] for r in table]
    (row,) = run.probe_rows("gradient_influence")  # measured twice, counted once
    assert row["folder"] == "probes" and np.isnan(row["influence"])


def test_evaluations_have_a_row_for_each_task_and_length(tmp_path):
    run = write_run(tmp_path / "run", [FACTS])
    (run / "eval").mkdir()
    written = evaluation(8, {32: [1.0, 0.5, 0.0], 64: [0.25, 0.25, 0.25]})
    (run / "eval" / "eval.json").write_text(json.dumps(written))
    table = Run(run).evaluations()
    assert table[["task", "length", "figure", "value"]].values.tolist() == [
        ["needle", 32, "accuracy", 0.5],
        ["needle", 64, "accuracy", 0.25],
        ["perplexity", 64, "bits_per_byte", 3.5],
    ]
    assert table.tokens.tolist() == [8 * PER_STEP] * 3
    written["settings"] = {"tasks": ["needle"], "lengths": [32, 64], "samples": 3, "data": None}
    (run / "eval" / "eval.json").write_text(json.dumps(written))
    (said,) = Run(run).evaluation_commands()
    assert said == (
        f"hybridlm eval --workdir {run} --step 8 --tasks needle --lengths 32,64 --samples 3"
        f" --out {run}/eval"
    )
    depths = Run(run).by_depth()
    assert depths[depths.length == 32].accuracy.tolist() == [1.0, 0.5, 0.0]


def sweep(root, seeds=(0, 1), windows=(8, 16)):
    for window in windows:
        for seed in seeds:
            settings = {**to_dict(smoke_config()), "seed": seed}
            settings["model"]["mixers"]["swa"]["window"] = window
            folder = root / f"window={window}" / f"seed={seed}"
            write_run(folder, [FACTS, training(4, window + seed / 10)], settings)
    (root / "logs").mkdir()
    return root


def test_runs_are_joined_with_the_settings_in_which_they_differ(tmp_path):
    runs = Runs(sweep(tmp_path / "sweep"))
    names = [f"window={w}/seed={s}" for w in (8, 16) for s in (0, 1)]
    assert runs.names == names
    key = "model.mixers.swa.window"
    differences = runs.differences()
    assert differences.index.tolist() == [key, "seed"]
    assert differences.loc[key].tolist() == [8, 8, 16, 16]
    assert runs.varied() == [key, "seed"]
    joined = runs.metrics()
    assert joined.run.tolist() == names and joined[key].tolist() == [8, 8, 16, 16]
    assert joined.loss.tolist() == [8.0, 8.1, 16.0, 16.1]
    assert runs.summary().training_loss.tolist() == joined.loss.tolist()
    assert runs["window=8/seed=1"].settings["seed"] == 1 and runs[0].name == "seed=0"
    with pytest.raises(RunError, match="there is no run x: there are window=8/seed=0"):
        runs["x"]


def test_runs_of_other_mixers_differ_in_settings_that_only_some_have(tmp_path):
    for name, mixer in (("a", {"kind": "rglru"}), ("b", {"kind": "rglru", "heads": 2})):
        settings = to_dict(smoke_config())
        settings["model"]["mixers"]["rec"] = {**mixer, "kind": f"of another project {name}"}
        write_run(tmp_path / name, [], settings)
    rows = {row["key"]: row for row in Runs(tmp_path).difference_rows()}
    assert rows["model.mixers.rec.heads"] == dict(key="model.mixers.rec.heads", a="(none)", b=2)


def test_runs_that_are_the_same_differ_in_no_row(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, [FACTS])
    table = Runs(tmp_path).differences()
    assert table.empty and table.index.name == "key" and list(table.columns) == ["a", "b"]


def test_a_checkpoint_of_transformers_is_no_run(tmp_path):
    """Beside runs, and alone."""
    write_run(tmp_path / "run", [FACTS])
    write_run(tmp_path / "teacher", [], {"architectures": ["LlamaForCausalLM"]})
    assert Runs(tmp_path).names == Runs(f"{tmp_path}/*").names == ["run"]
    with pytest.raises(RunError, match="leads to no run"):
        find_runs(tmp_path / "teacher")


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path):
    write_run(tmp_path / "run[1]" / "a*", [FACTS])
    assert [p.name for p in find_runs(tmp_path / "run[1]")] == ["a*"]


@pytest.mark.parametrize(
    ("asked", "found"), [("*/seed=1", 2), ("window=8/*", 2), ("*", 0), ("window=[8]/seed=0", 1)]
)
def test_a_glob_leads_to_runs(tmp_path, asked, found):
    root = sweep(tmp_path / "sweep")
    if found:
        assert len(find_runs(f"{root}/{asked}")) == found
    else:
        with pytest.raises(RunError, match="leads to no run"):
            find_runs(f"{root}/{asked}")


def test_runs_in_a_bucket(storage_servers, tmp_path):
    """Of a folder and of a glob; with their records, probes and evaluations."""
    base, settings = f"gs://bucket/{tmp_path.name}", json.dumps(to_dict(smoke_config()))
    for seed in (0, 1):
        folder = open_path(f"{base}/sweep/seed={seed}")
        (folder / "config.json").write_text(settings.replace('"seed": 0', f'"seed": {seed}'))
        lines = "".join(json.dumps(r) + "\n" for r in (FACTS, training(4, 1.0 + seed)))
        (folder / "metrics.jsonl").write_text(lines)
        heads = "".join(json.dumps(r) + "\n" for r in head_records(4, [[float(seed)] * 3] * 2))
        (folder / "probes" / "probes.jsonl").write_text(heads)
        written = json.dumps(evaluation(4, {32: [0.5, 0.5]}))
        (folder / "eval.json").write_text(written)
    teacher = open_path(f"{base}/sweep/seed=teacher")  # a checkpoint of transformers
    (teacher / "config.json").write_text('{"model_type": "llama"}')
    for asked in (f"{base}/sweep", f"{base}/sweep/*", f"{base}/*/seed=[01]"):
        runs = Runs(asked)
        assert runs.names == ["seed=0", "seed=1"] and runs.varied() == ["seed"]
    assert runs.metrics().loss.tolist() == [1.0, 2.0]
    assert runs.probes("retrieval_heads").mass.tolist() == [0.0] * 6 + [1.0] * 6
    assert runs.evaluations().value.tolist() == [0.5, 3.5] * 2
    for asked in (f"{base}/sweep", f"{base}/sweep/seed=*"):
        page = write_report(asked)
        assert "<h2>Probes</h2>" in page.read_text() and str(page).startswith(f"{base}/sweep/")


def test_tables_and_records_are_each_others_inverse():
    drawn = random.Random()
    records = [
        {
            "whole": drawn.randrange(2**60),
            "maybe": drawn.choice([None, 2**53 + 1]),
            "number": drawn.choice([drawn.random(), 1.0]),
            "text": drawn.choice(["a", "NaN"]),
            "truth": drawn.random() < 0.5,
        }
        for _ in range(20)
    ]
    assert records_of(frame(records)) == records and records_of(records) == records


def test_without_pandas_the_sentence_names_the_extra(tmp_path, monkeypatch):
    run = Run(write_run(tmp_path / "run", [FACTS, training(4, 3.0)]))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"tables need pandas: pip install 'hybridlm\[analysis\]'"):
        run.metrics()
    assert run.rows("train")[0]["loss"] == 3.0

"""The records of chunked ops on a CPU: their table, and what a run of some ops keeps."""

import argparse
import json
import pathlib
import types

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def mixers_cpu(script):
    return script("mixers_cpu")


def record(op, tokens, seconds, **more):
    """A record of an op that takes `seconds` at 4k tokens."""
    machine = {"cpu": "one", "cores": 2, "system": "Linux"}
    measured = dict(machine=machine, versions={"jax": "1"}, date="2026-01-02", repeats=3)
    ours = seconds * tokens / 4096
    return dict(op=op, tokens=tokens, ours=ours, peer=None, load_at_start=0.5, **measured) | more


@pytest.fixture
def records(mixers_cpu):
    """Two ops, of which the first has a peer that takes twice as long; the other is of a later run."""
    seconds = float(np.random.default_rng().uniform(0.01, 1))
    later = dict(machine={"cpu": "two", "cores": 4, "system": "Linux"}, versions={"jax": "2"})
    found = []
    for tokens in mixers_cpu.LENGTHS:
        found.append(record("scan", tokens, seconds, peer=2 * seconds * tokens / 4096))
        found.append(record("conv", tokens, seconds, **later))
    return found


def test_a_row_has_what_its_op_was_measured_with(mixers_cpu, records):
    table = mixers_cpu.render({"records": records}).splitlines()
    first = 1e3 * records[0]["ours"]
    assert f"| `scan` | {first:,.1f} |" in table[2] and "| 8.0 | 2.00 / 2.00 / 2.00 |" in table[2]
    assert "| 8.0 | it has none |" in table[3]
    measured = "2026-01-02, {}, {} cores, load 0.5 at the start; best of 3; jax {}."
    assert table[5:] == [
        "- `scan`: " + measured.format("one", 2, 1),
        "- `conv`: " + measured.format("two", 4, 2),
    ]


def test_a_stopped_run_keeps_what_it_has_measured(mixers_cpu, records, tmp_path, monkeypatch):
    """Whole ops only: the records of the op in work, and of ops after it, stay as they were."""
    file = tmp_path / "records.json"
    file.write_text(json.dumps({"records": records}))
    measured = [("scan", n) for n in mixers_cpu.LENGTHS] + [("new", n) for n in mixers_cpu.LENGTHS]
    measured += [("conv", mixers_cpu.LENGTHS[0])]
    lines = [dict(op=op, tokens=tokens, ours=5.0, peer=None) for op, tokens in measured]

    class Worker:
        """Stopped after the first length of its last op."""

        stdout = [json.dumps(line) for line in lines]
        returncode = -9

        def wait(self):
            return self.returncode

    started = types.SimpleNamespace(Popen=lambda *args, **options: Worker(), PIPE=None)
    monkeypatch.setattr(mixers_cpu, "subprocess", started)
    monkeypatch.setattr(mixers_cpu.train_cpu, "interpreter", lambda library, env: "python")
    options = argparse.Namespace(ops=None, json=file, env=None, repeats=3, peer_up_to=None)
    with pytest.raises(mixers_cpu.Unavailable, match="-9"):
        mixers_cpu.run(options)
    kept = json.loads(file.read_text())["records"]
    assert [r["op"] for r in kept] == ["scan"] * 3 + ["conv"] * 3 + ["new"] * 3
    assert [r["ours"] for r in kept[:3]] == [line["ours"] for line in lines[:3]]
    assert kept[3:6] == [r for r in records if r["op"] == "conv"]


def test_an_op_that_grows_too_fast_or_is_slower_than_its_peer_misses_its_bar(mixers_cpu, records):
    assert mixers_cpu.failures({"records": records}) == []
    (longest,) = [r for r in records if r["op"] == "scan" and r["tokens"] == 32768]
    longest["ours"] *= 2.5
    assert mixers_cpu.failures({"records": records}) == [
        "scan: 32k tokens take 20.0 times as long as 4k",
        "scan: 0.80 times as fast as the peer at 32,768",
    ]


def test_an_op_that_lacks_a_length_is_named_with_it(mixers_cpu, records, tmp_path, capsys):
    file = tmp_path / "records.json"
    file.write_text(json.dumps({"records": [r for r in records if r["tokens"] != 32768]}))
    assert mixers_cpu.main(["--render", str(file)]) == 1
    said = capsys.readouterr()
    assert "scan has no record at 32,768 tokens: measure it again" in said.out + said.err


def test_the_readme_has_the_committed_records(mixers_cpu):
    text = (BENCHMARKS / "README.md").read_text()
    table = text.split(mixers_cpu.BEGIN)[1].split(mixers_cpu.END)[0]
    committed = json.loads((BENCHMARKS / "mixers_cpu.json").read_text())
    assert table.strip() == mixers_cpu.render(committed)

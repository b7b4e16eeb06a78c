"""A visit's runner with real processes: what breaks costs itself alone, and nothing costs the results."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.gpu_visit import faults, runner
from benchmarks.gpu_visit.runner import Item, Phase, Results, Runner

FAKE = "tests.benchmarks.fake_items"


def item(name, task="write", limit=30.0, needs=(), follows=(), **given):
    return Item(name, f"{FAKE}:{task}", given, limit, needs, follows)


@pytest.fixture
def visit(tmp_path):
    """Runs phases; returns the outcome by item. Each call is a run over the same results."""

    def run(*phases, seconds=60.0, again=(), **options):
        results = Results(tmp_path / "results.jsonl", tmp_path / "copy.jsonl")
        made = Runner(results, tmp_path / "logs", seconds, least=0.3, **options)
        run.endings = made.run(phases, again)
        run.records = results.read()
        return {name: ending["outcome"] for name, ending in run.endings.items()}

    return run


def is_alive(pid):
    """Whether the process runs; a zombie does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_fault_costs_its_item_alone_and_keeps_its_records(visit):
    planted = dict(raises="raise@1", hangs="hang@1", dies="segv@1", leaves="exit@1")
    planted["at once"], planted["lacks"] = "segv", "missing:tests"
    names = [name for pair in zip(planted, "abcdef") for name in pair]
    items = [item(n, records=2, limit=2.0 if n == "hangs" else 30.0) for n in names]
    found = visit(Phase("all", tuple(items), jobs=4), faults=planted)
    assert [found[n] for n in "abcdef"] == ["done"] * 6
    assert found["raises"] == found["lacks"] == "failed" and found["hangs"] == "timed out"
    assert found["dies"] == found["leaves"] == found["at once"] == "died"
    assert "SIGSEGV" in visit.endings["dies"]["why"]
    assert "a planted fault" in visit.endings["raises"]["why"]
    assert "No module named 'tests" in visit.endings["lacks"]["why"]
    kept = [r["item"] for r in visit.records if r["kind"] == "record"]
    assert {n: kept.count(n) for n in names} == dict.fromkeys(names, 2) | {
        "raises": 1,
        "hangs": 1,
        "dies": 1,
        "leaves": 1,
        "at once": 0,
        "lacks": 0,
    }


def test_the_budget_is_kept_and_what_does_not_fit_is_listed(visit, tmp_path):
    """One hangs without heed of signals; three more would take longer than there is."""
    items = [item("hangs", limit=99.0), *(item(n, seconds=1.0) for n in "abc")]
    start = time.monotonic()
    found = visit(Phase("alone", tuple(items)), faults=dict(hangs="hang"), seconds=5.0)
    assert time.monotonic() - start < 5.0
    assert found == dict(hangs="stopped") | dict.fromkeys("abc", "not run")
    assert (tmp_path / "copy.jsonl").read_bytes() == (tmp_path / "results.jsonl").read_bytes()


def test_a_phase_leaves_time_to_the_next(visit):
    first = Phase("first", (item("hangs", limit=99.0), item("waits")), until=0.2)
    found = visit(first, Phase("second", (item("a"),)), faults=dict(hangs="hang"), seconds=7.0)
    assert found == dict(hangs="stopped", waits="not run", a="done")


def test_a_second_run_goes_on_where_the_first_stopped(visit, tmp_path):
    log = str(tmp_path / "runs.txt")
    planted = dict(raises="raise", slow="hang")
    names = ("a", "raises", "slow", "b")
    items = [item(n, log=log, limit=99.0) for n in names]
    visit(Phase("alone", tuple(items)), faults=planted, seconds=5.0)
    found = visit(Phase("alone", tuple(items)))
    assert found == dict(a="done", raises="failed", slow="done", b="done")
    assert pathlib.Path(log).read_text().split() == ["a", "slow", "b"]
    assert visit(Phase("alone", tuple(items)), again=("raises",))["raises"] == "done"
    assert pathlib.Path(log).read_text().split() == ["a", "slow", "b", "raises"]


def test_an_item_waits_for_others_and_is_skipped_if_they_failed(visit):
    items = (
        item("after the skipped", follows=("timed too",)),
        item("timed", needs=("right",)),
        item("timed too", needs=("wrong",)),
        item("step", follows=("right", "wrong")),
        item("never", needs=("nothing",)),
        item("right", seconds=0.3),
        item("wrong"),
    )
    found = visit(Phase("all", items, jobs=3), faults=dict(wrong="raise"))
    assert found["timed"] == found["step"] == found["after the skipped"] == "done"
    assert found["timed too"] == "skipped" and found["never"] == "not run"
    assert "wrong failed: RuntimeError: a planted fault" == visit.endings["timed too"]["why"]
    order = [r["item"] for r in visit.records if r["kind"] == "start"]
    assert set(order[:2]) == {"right", "wrong"}


def test_nothing_that_an_item_started_lives_on(visit, tmp_path):
    pid = tmp_path / "pid"
    for fault in ("", "hang@1", "segv@1"):
        pid.unlink(missing_ok=True)
        task = item("a", "leave_a_child", limit=1.5, pid=str(pid))
        visit(Phase("alone", (task,)), again=("a",), faults=dict(a=fault))
        deadline = time.monotonic() + 10  # a killed process may take a moment to end
        while is_alive(int(pid.read_text())) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not is_alive(int(pid.read_text()))


def test_nan_is_a_failure_and_not_a_record(visit):
    assert visit(Phase("all", (item("a", "not_a_number"),))) == dict(a="failed")
    assert not [r for r in visit.records if r["kind"] == "record"]


def test_a_worker_that_dies_before_it_has_its_item(visit):
    """A library that ends the process as it is imported."""
    phase = Phase("all", (item("a"), item("b")))
    assert visit(phase, preload=["antigravity_is_no_module", "this"])["a"] == "done"
    found = visit(phase, again=("a", "b"), environment=dict(PYTHONHOME="/nowhere"))
    assert found == dict(a="died", b="died")


def test_a_process_that_cannot_be_started_costs_its_item_alone(visit, tmp_path, monkeypatch):
    """Seen again by the next run."""
    phase = Phase("all", (item("a"), item("b")))
    whole = runner.subprocess.Popen

    def no_memory(*args, **options):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(runner.subprocess, "Popen", no_memory)
    assert visit(phase) == dict(a="stopped", b="stopped")
    monkeypatch.setattr(runner.subprocess, "Popen", whole)
    assert visit(phase) == dict(a="done", b="done")


def test_a_torn_line_costs_itself_alone(visit, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"kind": "end", "item": "a", "outcome": "done"}\n{"kind": "end", "ite')
    assert visit(Phase("all", (item("a"), item("b")))) == dict(a="done", b="done")
    starts = [r["item"] for r in visit.records if r["kind"] == "start"]
    assert starts == ["b"]


def test_a_killed_run_leaves_no_process_and_its_results(visit, tmp_path):
    """The item is repeated once; if the run ends again with it, it may be the cause."""
    results = str(tmp_path / "results.jsonl")
    program = (
        "import pathlib; from benchmarks.gpu_visit.runner import *\n"
        f"one = Item('slow', '{FAKE}:write', dict(seconds=50), 99.0)\n"
        f"Runner(Results(pathlib.Path({results!r})), pathlib.Path({str(tmp_path)!r}), 99)"
        ".run([Phase('all', (one,))])\n"
    )

    def started():
        return [r for r in runner.read(pathlib.Path(results)) if r["kind"] == "record"]

    for times in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=runner.ROOT)
        while len(started()) < times:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if times == 1:
            assert runner.outcomes(runner.read(pathlib.Path(results))) == {}
    assert visit(Phase("all", (item("slow"),)))["slow"] == "died"
    deadline = time.monotonic() + 10
    while workers_of(results) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers_of(results)


def workers_of(results):
    """Live processes that have the file's folder as their log's."""
    folder, found = os.path.dirname(results), []
    for entry in pathlib.Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if os.readlink(entry).startswith(folder):
                found.append(entry)
        except OSError:
            pass
    return found


def test_an_asked_stop_ends_the_run_with_its_list(tmp_path):
    results = tmp_path / "results.jsonl"
    program = (
        "import pathlib; from benchmarks.gpu_visit.runner import *\n"
        f"items = [Item(n, '{FAKE}:write', dict(seconds=50), 99.0) for n in 'ab']\n"
        f"Runner(Results(pathlib.Path({str(results)!r})), pathlib.Path({str(tmp_path)!r}), 99)"
        ".run([Phase('all', tuple(items))])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=runner.ROOT)
    while not [r for r in runner.read(results) if r["kind"] == "record"]:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 0
    ends = {
        r["item"]: r["outcome"]
        for r in map(json.loads, results.read_text().splitlines())
        if r["kind"] == "end"
    }
    assert ends == dict(a="stopped", b="not run")


def test_an_unknown_fault_is_an_error():
    with pytest.raises(ValueError, match="the kinds are raise, hang"):
        faults.plant("explode")

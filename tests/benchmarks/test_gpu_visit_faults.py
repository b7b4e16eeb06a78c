"""A fault costs its item and what needs it, in whichever phase it strikes; and the wheels that travel."""

import re
import subprocess
import sys

import pytest

from benchmarks.gpu_visit import page, plan, runner, wheels
from benchmarks.gpu_visit.plan import KERNEL, XLA
from benchmarks.gpu_visit.runner import Phase, Results, Runner

OUTCOMES = dict(segv="died", exit="died", hang="timed out")  # of the other kinds: "failed"
WINDOW, SLOTS, LINEAR = "attention, window 512", "gated_slots", "gated_linear, gate per head"
RECURRENCE, UNGATED = "linear_recurrence, RG-LRU's gate", "linear_recurrence, no gate"


def outcome(fault: str) -> str:
    return OUTCOMES.get(fault.partition("@")[0], "failed")


def lost(phases, planted) -> set[str]:
    """The items that need one that is struck, directly or not."""
    found: set[str] = set()
    for _ in plan.names(phases):  # a chain is no longer than the plan
        for item in (i for p in phases for i in p.items):
            if item.name not in planted and not found.union(planted).isdisjoint(item.needs):
                found.add(item.name)
    return found


# --- the plan with items that do nothing -----------------------------------------------------------

#: In every phase, and on kernels themselves every kind.
PLANTED = {
    "card": "nan",
    f"numbers / {WINDOW} / {KERNEL}": "raise",
    f"numbers / {SLOTS} / {KERNEL}": "hang",
    f"numbers / {RECURRENCE} / {KERNEL}": "nan",
    f"numbers / {LINEAR} / {KERNEL}": "segv",
    f"numbers / {UNGATED} / {XLA}": "exit@1",
    "compile / gdn": "hang@1",
    f"times / {RECURRENCE} / {XLA}": "segv@1",
    f"times / {SLOTS} / {XLA}": "hang@1",
    "step / windowed": "nan",
    "retrieval / w512-rope": "missing:colorsys",
    "compile XLA / windowed": "hang",
    "step XLA / gdn": "segv@1",
    "retrieval / gdn-rope": "exit",
    "compile / text, nope": "raise@1",
    "text / w2-rope": "exit@2",
}
CHOSEN = (
    *("card", "retrieval / w", "retrieval / gdn", "retrieval, w16-rope", "windowed", "gdn", "text"),
    *(f"/ {op} / hybridlm" for op in (WINDOW, SLOTS, LINEAR, RECURRENCE, UNGATED)),
)


def without_work(phases, chosen, limit_of_hangs=1.0):
    """The chosen items with a task that does nothing."""
    names = {n for n in plan.names(phases) if any(part in n for part in chosen)}
    hangs = {n for n, fault in PLANTED.items() if fault.startswith("hang")}

    def fake(item):
        limit = limit_of_hangs if item.name in hangs else 60.0
        follows = tuple(n for n in item.follows if n in names)
        task = "tests.benchmarks.fake_items:measure"
        return item._replace(task=task, given={}, limit=limit, follows=follows)

    return [
        Phase(p.name, tuple(fake(i) for i in p.items if i.name in names), p.jobs) for p in phases
    ]


def test_a_fault_in_every_phase_costs_what_needs_it_alone(tmp_path):
    """Every other item ends well, and its records are on disk and in the copy."""
    phases = without_work(plan.phases(smoke=True, jobs=4), CHOSEN)
    for phase in phases:
        assert not set(PLANTED).isdisjoint(plan.names([phase])), phase.name
    kinds = {f.partition("@")[0] for n, f in PLANTED.items() if KERNEL in n and "numbers" in n}
    assert kinds == {"raise", "hang", "nan", "segv"}
    results = Results(tmp_path / "results.jsonl", tmp_path / "copy.jsonl")
    made = Runner(results, tmp_path / "logs", 300.0, faults=PLANTED)
    ends = made.run(phases)
    skipped = lost(phases, PLANTED)
    assert {
        f"compile / {WINDOW} / {KERNEL}",
        f"times / {LINEAR} / {KERNEL}",
        f"times / {UNGATED} / {XLA}",
        "step / gdn",
        "step XLA / windowed",
        "text / w32-nope",
    } <= skipped
    expected = dict.fromkeys(ends, "done") | dict.fromkeys(skipped, "skipped")
    expected |= {name: outcome(fault) for name, fault in PLANTED.items()}
    assert {name: end["outcome"] for name, end in ends.items()} == expected
    records = results.read()
    whole = {name for name, what in expected.items() if what == "done"}
    kept = [r["item"] for r in records if r["kind"] == "record"]
    assert len(whole) > 20 and all(kept.count(name) == 2 for name in whole)
    copied = runner.outcomes(runner.read(tmp_path / "copy.jsonl"))
    assert {n: e["outcome"] for n, e in copied.items()} == expected
    text = page.render([r for r in records if r["kind"] != "record"], list(ends))
    assert all(f"- {name}: {expected[name]}." in text for name in (*PLANTED, *skipped))


# --- the plan itself -------------------------------------------------------------------------------

REHEARSED = {
    "card": "nan",
    f"numbers / {RECURRENCE} / {KERNEL}": "nan",
    f"numbers / {WINDOW} / {KERNEL}": "raise",
    f"numbers / {SLOTS} / {KERNEL}": "segv",
    f"numbers / {LINEAR} / {KERNEL}": "hang",
    f"numbers / {SLOTS} / {XLA}": "segv",
    f"compile / attention, window 128 / {XLA}": "hang",
    "compile / gdn": "hang",
    f"times / {RECURRENCE} / {XLA}": "segv@1",
    f"times / {WINDOW} / {XLA}": "exit",
    "step / windowed": "nan",
    "retrieval / w16-rope": "nan",
    "retrieval / w512-rope": "missing:optax",
    f"numbers / {UNGATED} / {XLA}": "exit",
    "compile XLA / windowed": "hang",
    f"times / {UNGATED} / {KERNEL}": "raise@1",
    "retrieval / gdn-rope": "missing:flax",
    "compile / text, nope": "hang",
    "text / w2-rope": "nan",
}


@pytest.mark.slow
def test_a_rehearsal_with_a_fault_in_every_phase(root, tmp_path):
    """Kernels interpreted, tiny sizes."""
    phases = plan.phases(smoke=True)
    for phase in phases:
        assert not set(REHEARSED).isdisjoint(plan.names([phase])), phase.name
    only = [part for part in (name.partition(" / ")[2] for name in REHEARSED) if part]
    only = [part for part in only if not re.fullmatch(r"\S*-rope|text, nope", part)]
    only += ["card", "text", *(n for n in REHEARSED if n.startswith("retrieval"))]
    calls = {call for n in ("windowed", "gdn") for c in plan.HYBRIDS[n].values() for call in c}
    only += [f"numbers / {op} / {KERNEL}" for op in calls]
    command = [sys.executable, "-m", "benchmarks.gpu_visit", "run", "--smoke", "--jobs", "2"]
    command += ["--seconds", "2400", "--folder", str(tmp_path), "--only", *only]
    command += [part for pair in REHEARSED.items() for part in ("--fault", "=".join(pair))]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    records = runner.read(tmp_path / "results.jsonl")
    ends = runner.outcomes(records)
    for name, fault in REHEARSED.items():
        assert ends[name]["outcome"] == outcome(fault), (name, ends[name], done.stdout, done.stderr)
    others = {n: e for n, e in ends.items() if n not in REHEARSED}
    assert sum(e["outcome"] == "done" for e in others.values()) >= 8
    skipped = lost(phases, REHEARSED)
    assert all(others[n]["outcome"] == "skipped" for n in skipped if n in others)
    broken = {n: e for n, e in others.items() if e["outcome"] != "done" and n not in skipped}
    assert all("cuDNN" in n or "linear-attention" in n for n in broken), broken
    text = page.render(records, list(plan.names(phases)))
    assert all(f"- {name}: {ends[name]['outcome']}." in text for name in REHEARSED)


# --- wheels ----------------------------------------------------------------------------------------


def test_the_wheels_have_the_tested_versions():
    """Every package is pinned, in constraints.txt or in the list."""
    text = (runner.ROOT / "constraints.txt").read_text()
    pinned = {re.sub("[-_]", "-", line.partition("==")[0]).lower() for line in text.splitlines()}
    for name in wheels.PACKAGES:
        assert re.sub("[-_]", "-", name).lower() in pinned, name


@pytest.fixture
def clone(tmp_path):
    """A repository with 1,000 tracked, 200 new and 5,000 ignored bytes."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name, size in {"tracked": 993, "new file": 200, "wheels/a.whl": 5000}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / ".gitignore").write_text("wheels\n")
    subprocess.run(["git", "add", "tracked", ".gitignore"], cwd=tmp_path, check=True)
    return tmp_path


def test_the_clone_takes_room_from_the_wheels(clone):
    """What git ignores does not travel; a file that was deleted, neither."""
    assert wheels.tree_bytes(clone) == 1200
    assert wheels.most(clone) == 60 * 2**20 - 1200
    (clone / "tracked").unlink()
    assert wheels.tree_bytes(clone) == 207
    with (clone / "large").open("wb") as file:
        file.truncate(70 * 2**20)
    assert wheels.most(clone) == 0
    with pytest.raises(RuntimeError, match="git cannot list"):
        wheels.tree_bytes(clone.parent)


def test_wheels_that_do_not_fit_beside_the_clone_are_refused(tmp_path, monkeypatch):
    def pip(command, **options):
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", pip)
    monkeypatch.setattr(wheels, "tree_bytes", lambda: 22 * 2**20)
    monkeypatch.setattr(wheels, "most", lambda: 38 * 2**20)
    wheel = tmp_path / "large-1-py3-none-any.whl"
    with wheel.open("wb") as file:
        file.truncate(38 * 2**20)
    assert wheels.download(tmp_path) == 38 * 2**20
    with wheel.open("ab") as file:
        file.truncate(39 * 2**20)
    with pytest.raises(RuntimeError, match="39.0 MiB, and at most 38.0 MiB .* less 22.0 MiB"):
        wheels.download(tmp_path)


def test_this_clone_leaves_room_for_the_wheels():
    """33 MiB, as measured when they were last fetched."""
    assert wheels.most() > 34 * 2**20

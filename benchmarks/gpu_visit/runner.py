"""Runs the items of a plan, each in a process of its own, within a budget of seconds.

An item that raises, hangs or kills its process costs itself alone. Its records are on disk as they come;
a second run goes on where the first stopped. Whatever happens, the runner ends within its budget and says
of every item how it ended, or that it was not run.
"""

import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: Outcomes of items that a later run does not repeat.
OVER = ("done", "failed", "died", "timed out")
LEAST = 4.0  # seconds; an item is not started with fewer
RESERVE = 3.0  # seconds of the budget that are kept for ending processes and writing
FAILED = 3  # exit code of a worker whose item raised
PATIENCE = 2.0  # seconds to wait for the end of a killed process


class Item(NamedTuple):
    """One piece of work.

    Attributes:
      name: unique in the plan.
      task: "module:function"; it is called with a writer of records and `given`.
      given: its keyword arguments, which JSON can hold.
      limit: seconds.
      needs: items that must be done before; if one failed, this one is skipped.
      follows: items that must have ended before, in whatever way.
    """

    name: str
    task: str
    given: Mapping[str, Any]
    limit: float
    needs: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()


class Phase(NamedTuple):
    """Items in order of worth.

    Attributes:
      jobs: how many run side by side; what is timed runs alone.
      until: share of the budget after which what is left of the phase is stopped.
    """

    name: str
    items: tuple[Item, ...]
    jobs: int = 1
    until: float = 1.0


class Results:
    """A file of JSON lines, to which the workers also append.

    Each line is one write, so lines of several processes do not mix and a killed process leaves whole
    lines. `copy` gets the same content after every item.
    """

    def __init__(self, path: pathlib.Path, copy: pathlib.Path | None = None):
        self.path, self.copy = path, copy
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            append(path, b"\n")

    def write(self, record: Mapping[str, Any]) -> None:
        append(self.path, (json.dumps(record, allow_nan=False) + "\n").encode())
        if self.copy and record["kind"] != "start":
            with contextlib.suppress(OSError):  # a full disk must not end the run
                draft = self.copy.with_name(self.copy.name + ".draft")
                draft.write_bytes(self.path.read_bytes())
                draft.replace(self.copy)

    def read(self) -> list[dict[str, Any]]:
        """All records; lines that are no JSON are left out."""
        return read(self.path)


def append(path: pathlib.Path, line: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a results file; lines that are no JSON are left out."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict) and "kind" in record]


def outcomes(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The last ending of each item. An item that was running twice when the whole run ended counts as
    "died": it may be what ended it."""
    found: dict[str, dict[str, Any]] = {}
    open_starts: collections.Counter[str] = collections.Counter()
    for record in records:
        if record["kind"] == "start":
            open_starts[record["item"]] += 1
        elif record["kind"] == "end":
            found[record["item"]] = dict(record)
            open_starts[record["item"]] = 0
    for name, starts in open_starts.items():
        if starts >= 2:
            why = "the whole run ended twice while it ran"
            found[name] = {"item": name, "kind": "end", "outcome": "died", "why": why}
    return found


class Running(NamedTuple):
    item: Item
    process: subprocess.Popen
    log: pathlib.Path
    begun: float
    deadline: float
    own_limit: bool  # whether `deadline` is the item's limit, not the phase's or the budget's


class Runner:
    """Runs phases; use `run` once."""

    def __init__(
        self,
        results: Results,
        logs: pathlib.Path,
        seconds: float,
        *,
        begun: float | None = None,
        environment: Mapping[str, str] | None = None,
        preload: Sequence[str] = (),
        faults: Mapping[str, str] | None = None,
        least: float = LEAST,
    ):
        """Makes a runner.

        Args:
          results: gets the records.
          logs: a folder for what the workers print.
          seconds: the budget, from `begun`.
          begun: `time.monotonic()` at the start of the budget; None is now.
          environment: added to the workers' variables.
          preload: modules that a worker imports before it is given an item, so that the next item's
            process is ready when the last one ends.
          faults: planted faults by item (see `faults.py`), for rehearsals.
          least: an item is not started with fewer seconds left.
        """
        self.results, self.logs = results, logs
        self.begun = time.monotonic() if begun is None else begun
        self.end = self.begun + seconds - RESERVE
        self.seconds = seconds
        self.environment = {**os.environ, **(environment or {})}
        self.preload, self.faults, self.least = tuple(preload), dict(faults or {}), least
        self.known: dict[str, dict[str, Any]] = {}
        self.stopping = False
        self._spare: tuple[subprocess.Popen, pathlib.Path] | None = None
        self._made = 0

    # --- phases --------------------------------------------------------------------------------

    def run(self, phases: Sequence[Phase], again: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """The ending of every item of the plan.

        Args:
          again: items whose name contains one of these are repeated, however they ended.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        self.known = outcomes(self.results.read())
        for name in [n for n in self.known if any(part in n for part in again)]:
            del self.known[name]
        before = {n for n, e in self.known.items() if e["outcome"] in OVER}
        handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            for phase in phases:
                self._run_phase(phase, before)
        finally:
            self._end_spare()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return {i.name: self.known[i.name] for phase in phases for i in phase.items}

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True

    def _run_phase(self, phase: Phase, before: set[str]) -> None:
        end = min(self.end, self.begun + phase.until * self.seconds)
        waiting = [item for item in phase.items if item.name not in before]
        for item in waiting:
            self.known.pop(item.name, None)
        running: list[Running] = []
        try:
            while waiting or running:
                for ended in [r for r in running if self._is_over(r)]:
                    running.remove(ended)
                    self._finish(ended)
                late = self.stopping or time.monotonic() > end - self.least
                if not late and self._begin(phase, waiting, running, end):
                    continue
                if not running:
                    break
                time.sleep(0.02)
        finally:
            for left in running:
                self._kill(left.process)
        for item in waiting:
            why = (
                self._missing(item)
                or f"{max(0, end - time.monotonic()):.0f} s of {phase.name} left"
            )
            self._note(item, "not run", why, 0.0)

    def _begin(self, phase: Phase, waiting: list[Item], running: list[Running], end: float) -> bool:
        """Moves the first item that may run now from `waiting` to `running`, and takes out those that
        cannot run; whether there was one."""
        if len(running) >= phase.jobs:
            return False
        before = len(waiting)
        for item in list(waiting):
            failed = [n for n in item.needs if self._outcome(n) not in (None, "done")]
            if failed:
                waiting.remove(item)
                why = self.known[failed[0]].get("why", "")
                self._note(item, "skipped", f"{failed[0]} {self._outcome(failed[0])}: {why}", 0.0)
            elif all(self._outcome(name) for name in (*item.needs, *item.follows)):
                waiting.remove(item)
                try:
                    running.append(self._start(item, end))
                except OSError as error:  # no memory for a process, or no room on the disk
                    self._note(item, "stopped", f"it could not be started: {error}", 0.0)
                return True
        return len(waiting) < before

    def _outcome(self, name: str) -> str | None:
        return self.known[name]["outcome"] if name in self.known else None

    def _missing(self, item: Item) -> str:
        missing = [n for n in (*item.needs, *item.follows) if self._outcome(n) in (None, "not run")]
        return f"{missing[0]} has not run" if missing else ""

    # --- one item ------------------------------------------------------------------------------

    def _start(self, item: Item, end: float) -> Running:
        process, log = self._spare or self._new_worker()
        self._spare = None
        self.results.write({"kind": "start", "item": item.name})
        begun = time.monotonic()
        job = {
            "item": item.name,
            "task": item.task,
            "given": item.given,
            "results": str(self.results.path.resolve()),
            "fault": self.faults.get(item.name),
        }
        with contextlib.suppress(BrokenPipeError):  # it died while it imported: seen at its end
            process.stdin.write((json.dumps(job, allow_nan=False) + "\n").encode())
            process.stdin.flush()
        with contextlib.suppress(OSError):
            self._spare = self._new_worker()
        deadline = min(begun + item.limit, end)
        return Running(item, process, log, begun, deadline, deadline == begun + item.limit)

    def _new_worker(self) -> tuple[subprocess.Popen, pathlib.Path]:
        """A worker that imports `preload` and waits for its item."""
        self._made += 1
        log = self.logs / f"{os.getpid()}-{self._made:03d}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu_visit.worker", *self.preload],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self.environment,
                start_new_session=True,
            )
        return process, log

    def _is_over(self, running: Running) -> bool:
        late = self.stopping or time.monotonic() > running.deadline
        return running.process.poll() is not None or late

    def _finish(self, running: Running) -> None:
        code, seconds = running.process.poll(), time.monotonic() - running.begun
        said = last_line(running.log)
        if code is None:
            dead = self._kill(running.process)
            late = running.own_limit and not self.stopping
            outcome = "timed out" if late else "stopped"
            why = f"it had not ended after {seconds:.0f} s" + ("" if dead else ", nor when killed")
        elif code == 0:
            outcome, why = "done", ""
        elif code == FAILED:
            outcome, why = "failed", said
        else:
            outcome, why = "died", f"{_of_code(code)}; its last line: {said}"
        if code is not None:
            self._kill(running.process)  # what it started
        self._note(running.item, outcome, why, seconds)

    def _note(self, item: Item, outcome: str, why: str, seconds: float) -> None:
        record = {
            "kind": "end",
            "item": item.name,
            "outcome": outcome,
            "seconds": round(seconds, 1),
        }
        if why:
            record["why"] = why[:500]
        self.known[item.name] = record
        self.results.write(record)
        at = time.monotonic() - self.begun
        print(f"[{at:5.0f} s] {outcome:<9} {item.name} {seconds:.0f} s {why[:160]}", flush=True)

    def _kill(self, process: subprocess.Popen) -> bool:
        """Kills the process with all that it started; whether it has ended."""
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # waits for a driver
            return False
        return True

    def _end_spare(self) -> None:
        if self._spare is not None:
            self._kill(self._spare[0])
            self._spare = None


def _of_code(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def last_line(log: pathlib.Path) -> str:
    """What a worker said last: its failure, if it wrote one."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
    return (told or lines or ["it said nothing"])[-1][:400]

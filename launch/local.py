"""Runs of a sweep as processes of this machine, so many at a time.

A run that fails stops no other. Ctrl-C asks the runs to save and ends the sweep; the same command
goes on with it. A second Ctrl-C kills them, which costs no more than the steps since their last
checkpoint.
"""

import contextlib
import dataclasses
import fcntl
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hybridlm.errors import TRY_AGAIN, RunError, UserError
from hybridlm.sweep.progress import RunProgress, newest
from hybridlm.train import preemption
from launch.job import PROGRAM, Job, child_environment
from launch.live_table import LiveTable
from launch.site import LocalSite

_POLL_SECONDS, _SHOW_SECONDS = 0.1, 1.0
_SENTENCE = "hybridlm: "  # with which the command line begins what a person should read


@dataclasses.dataclass
class _Attempt:
    """A job, and its process once there is one."""

    job: Job
    workdir: pathlib.Path
    log: pathlib.Path
    reached: RunProgress
    state: str = "waiting"
    slot: int | None = None
    process: subprocess.Popen | None = None
    log_start: int = 0  # bytes that earlier attempts left in the log
    failure: str = ""

    def row(self) -> tuple[str, ...]:
        def nats(loss: float | None) -> str:
            return "" if loss is None else f"{loss:.4f}"

        reached = self.reached
        step = f"{reached.step}/{self.job.steps}"
        return (self.job.name, self.state, step, nats(reached.loss), nats(reached.heldout))


class Local:
    """Starts jobs here, `parallel` at a time."""

    confirms = False

    def __init__(self, site: LocalSite, parallel: int):
        self._site, self._parallel = site, parallel
        if len(site.gpus) % parallel:
            raise UserError(
                f"--parallel {parallel} does not divide the {len(site.gpus)} GPUs of local.gpus"
            )

    def preview(self, jobs: Sequence[Job], root: pathlib.Path) -> str:
        command = shlex.join([*PROGRAM, *jobs[0].words(root)])
        at_a_time = f"{min(self._parallel, len(jobs))} at a time"
        return f"here, {at_a_time}, with logs in {root / 'logs'}; the first one:\n{command}"

    def submit(self, jobs: Sequence[Job], root: pathlib.Path) -> int:
        """Runs the jobs to their end; 0 if all finished, 1 if any failed, 75 if stopped."""
        attempts = [
            _Attempt(
                job, job.workdir(root), root / "logs" / f"{job.name}.log", job.planned.progress
            )
            for job in jobs
        ]
        with _held(root) as lock, preemption.StopSignal() as stop:
            try:
                self._run(attempts, root, lock, stop)
            finally:
                for attempt in attempts:
                    if attempt.process and attempt.process.poll() is None:
                        attempt.process.kill()
                        attempt.process.wait()
        failed = [a for a in attempts if a.state == "failed"]
        for attempt in failed:
            print(f"hybridlm: run {attempt.job.name} {attempt.failure}", file=sys.stderr)
        if failed:
            return 1
        return 0 if all(a.state == "finished" for a in attempts) else TRY_AGAIN

    def _run(
        self, attempts: list[_Attempt], root: pathlib.Path, lock: Any, stop: preemption.StopSignal
    ) -> None:
        table, shown, asked = LiveTable(), 0.0, False
        slots = list(range(self._parallel))
        while True:
            running = [a for a in attempts if a.state in ("running", "stopping")]
            for attempt in running:
                if attempt.process.poll() is not None:
                    self._end(attempt, asked)
                    slots.append(attempt.slot)
                    table.say(f"{attempt.job.name}: {attempt.state}{_where(attempt)}")
            if stop.received and not asked:
                asked = True
                table.say(f"{stop.received} received: the runs save and stop")
                for attempt in attempts:
                    if attempt.state == "running":
                        attempt.process.send_signal(signal.SIGTERM)
                        attempt.state = "stopping"
                    elif attempt.state == "waiting":
                        attempt.state = "stopped"
            waiting = [a for a in attempts if a.state == "waiting"]
            for attempt in waiting[: len(slots)]:
                self._start(attempt, slots.pop(0), root, lock)
                table.say(f"{attempt.job.name}: started, log in {attempt.log}")
            _note(lock, attempts)
            if not any(a.state in ("waiting", "running", "stopping") for a in attempts):
                break
            if time.monotonic() - shown >= _SHOW_SECONDS:
                shown = time.monotonic()
                for attempt in running:
                    attempt.reached = _seen(attempt)
                table.show([a.row() for a in attempts])
            time.sleep(_POLL_SECONDS)
        table.finish([a.row() for a in attempts])

    def _start(self, attempt: _Attempt, slot: int, root: pathlib.Path, lock: Any) -> None:
        environment = child_environment(self._site.env)
        if self._site.gpus:
            share = len(self._site.gpus) // self._parallel
            own = self._site.gpus[slot * share : (slot + 1) * share]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
        attempt.log.parent.mkdir(parents=True, exist_ok=True)
        with attempt.log.open("ab") as log:
            attempt.log_start = log.tell()
            attempt.process = subprocess.Popen(
                [*PROGRAM, *attempt.job.words(root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C reaches this process alone, which passes on one signal: two stop at once.
                start_new_session=True,
                # While a run lives, whatever became of this process, the root is taken.
                pass_fds=(lock.fileno(),),
            )
        attempt.state, attempt.slot = "running", slot

    def _end(self, attempt: _Attempt, asked: bool) -> None:
        code = attempt.process.returncode
        attempt.reached = _seen(attempt)
        if code == 0:
            attempt.state = "finished"
        elif code == TRY_AGAIN or (asked and code == -signal.SIGTERM):
            attempt.state = "stopped"  # before there was anything to save, in the second case
        else:
            attempt.state = "failed"
            attempt.failure = _failure(attempt, code)


def _seen(attempt: _Attempt) -> RunProgress:
    return newest(attempt.workdir)


def _where(attempt: _Attempt) -> str:
    if attempt.state == "stopped" and attempt.reached.step:
        return f" at step {attempt.reached.step} of {attempt.job.steps}"
    if attempt.state == "finished" and attempt.reached.heldout is not None:
        return f", {attempt.reached.heldout:.4f} nats held out"
    return ""


def _failure(attempt: _Attempt, code: int) -> str:
    """One sentence: how a process ended, what it said last, and where the rest is."""
    ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed ({code})"
    with attempt.log.open("rb") as log:
        log.seek(attempt.log_start)
        lines = log.read().decode(errors="replace").split("\n")
    said = [line for line in lines if line.startswith(_SENTENCE)] or [x for x in lines if x.strip()]
    last = said[-1].removeprefix(_SENTENCE) if said else "it said nothing"
    return f"{ended}: {last} (log in {attempt.log})"


@contextlib.contextmanager
def _held(root: pathlib.Path) -> Iterator[Any]:
    """The lock of `root`, which the runs inherit.

    Raises:
      RunError: where another sweep, or a run that one left behind, works there.
    """
    path = root / ".lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            who = " ".join(lock.read().split())
            raise RunError(
                f"another sweep, or runs that one left behind, work in {root} ({who}): wait for"
                " them, or stop them with SIGTERM"
            ) from None
        yield lock
        lock.truncate(0)


def _note(lock: Any, attempts: Sequence[_Attempt]) -> None:
    """Says in the lock file which processes hold it."""
    ids = [str(a.process.pid) for a in attempts if a.state in ("running", "stopping")]
    text = f"processes {' '.join(ids)}\n"
    lock.seek(0)
    if lock.read() != text:
        lock.truncate(0)
        lock.write(text)
        lock.flush()

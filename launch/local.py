"""Runs of a sweep as processes on this machine, a given number at a time.

A failed run does not stop the others. Ctrl-C tells the runs to save and ends the sweep; the same
command continues it. A second Ctrl-C kills the runs, which loses the steps since their last
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
from hybridlm.storage.writing import make_folder, writing
from hybridlm.sweep.progress import RunProgress, newest_progress
from hybridlm.train import preemption
from launch.job import PROGRAM, Job, child_environment, files_folder
from launch.live_table import LiveTable
from launch.site import LocalSite

_POLL_SECONDS, _SHOW_SECONDS = 0.1, 1.0
_MESSAGE_PREFIX = "hybridlm: "  # the prefix of the command line's error messages


@dataclasses.dataclass
class _Attempt:
    """A job, and its process once it is started."""

    job: Job
    workdir: pathlib.Path
    log: pathlib.Path
    progress: RunProgress
    state: str = "waiting"
    slot: int | None = None
    process: subprocess.Popen | None = None
    log_start: int = 0  # bytes that earlier attempts wrote to the log
    failure: str = ""

    def row(self) -> tuple[str, ...]:
        def nats(loss: float | None) -> str:
            return "" if loss is None else f"{loss:.4f}"

        progress = self.progress
        step = f"{progress.step}/{self.job.steps}"
        return (self.job.name, self.state, step, nats(progress.loss), nats(progress.heldout))


class LocalLauncher:
    """Starts jobs on this machine, `parallel` at a time."""

    confirms = False

    def __init__(self, site: LocalSite, parallel: int):
        self._site, self._parallel = site, parallel
        if len(site.gpus) % parallel:
            raise UserError(
                f"--parallel {parallel} does not divide the {len(site.gpus)} GPUs of local.gpus"
            )

    def preview(self, jobs: Sequence[Job], root: pathlib.Path) -> str:
        command = shlex.join([*PROGRAM, *jobs[0].arguments(root)])
        at_a_time = f"{min(self._parallel, len(jobs))} at a time"
        return f"on this machine, {at_a_time}, with logs in {files_folder(root) / 'logs'}; the first:\n{command}"

    def submit(self, jobs: Sequence[Job], root: pathlib.Path) -> int:
        """Runs the jobs to their end; returns 0 if all finished, 1 if any failed, 75 if stopped."""
        folder = files_folder(root)
        make_folder(folder)
        attempts = [
            _Attempt(
                job, job.workdir(root), folder / "logs" / f"{job.name}.log", job.planned.progress
            )
            for job in jobs
        ]
        with _locked(folder) as lock, preemption.StopSignal() as stop:
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
        table, shown, stopping = LiveTable(), 0.0, False
        slots = list(range(self._parallel))
        while True:
            running = [a for a in attempts if a.state in ("running", "stopping")]
            for attempt in running:
                if attempt.process.poll() is not None:
                    self._end(attempt, stopping)
                    slots.append(attempt.slot)
                    table.print_line(f"{attempt.job.name}: {attempt.state}{_result(attempt)}")
            if stop.received and not stopping:
                stopping = True
                table.print_line(f"{stop.received} received: the runs save and stop")
                for attempt in attempts:
                    if attempt.state == "running":
                        attempt.process.send_signal(signal.SIGTERM)
                        attempt.state = "stopping"
                    elif attempt.state == "waiting":
                        attempt.state = "stopped"
            waiting = [a for a in attempts if a.state == "waiting"]
            for attempt in waiting[: len(slots)]:
                self._start(attempt, slots.pop(0), root, lock)
                table.print_line(f"{attempt.job.name}: started, log in {attempt.log}")
            _write_processes(lock, attempts)
            if not any(a.state in ("waiting", "running", "stopping") for a in attempts):
                break
            if time.monotonic() - shown >= _SHOW_SECONDS:
                shown = time.monotonic()
                for attempt in running:
                    attempt.progress = newest_progress(attempt.workdir)
                table.show([a.row() for a in attempts])
            time.sleep(_POLL_SECONDS)
        table.finish([a.row() for a in attempts])

    def _start(self, attempt: _Attempt, slot: int, root: pathlib.Path, lock: Any) -> None:
        environment = child_environment(self._site.env)
        if self._site.gpus:
            share = len(self._site.gpus) // self._parallel
            own = self._site.gpus[slot * share : (slot + 1) * share]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
        make_folder(attempt.log.parent)
        with writing(attempt.log), attempt.log.open("ab") as log:
            attempt.log_start = log.tell()
            attempt.process = subprocess.Popen(
                [*PROGRAM, *attempt.job.arguments(root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C reaches only this process, which sends each run one signal: a run exits
                # unsaved at a second one.
                start_new_session=True,
                # The root stays locked while a run is alive, even if this process is not.
                pass_fds=(lock.fileno(),),
            )
        attempt.state, attempt.slot = "running", slot

    def _end(self, attempt: _Attempt, stopping: bool) -> None:
        code = attempt.process.returncode
        attempt.progress = newest_progress(attempt.workdir)
        if code == 0:
            attempt.state = "finished"
        elif code == TRY_AGAIN or (stopping and code == -signal.SIGTERM):
            attempt.state = "stopped"  # killed by SIGTERM: before there was anything to save
        else:
            attempt.state = "failed"
            attempt.failure = _failure(attempt, code)


def _result(attempt: _Attempt) -> str:
    if attempt.state == "stopped" and attempt.progress.step:
        return f" at step {attempt.progress.step} of {attempt.job.steps}"
    if attempt.state == "finished" and attempt.progress.heldout is not None:
        return f", {attempt.progress.heldout:.4f} nats held out"
    return ""


def _failure(attempt: _Attempt, code: int) -> str:
    """One sentence: how the process exited, its last message, and the path of its log."""
    ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed ({code})"
    with attempt.log.open("rb") as log:
        log.seek(attempt.log_start)
        lines = log.read().decode(errors="replace").split("\n")
    messages = [line for line in lines if line.startswith(_MESSAGE_PREFIX)]
    messages = messages or [line for line in lines if line.strip()]
    last = messages[-1].removeprefix(_MESSAGE_PREFIX) if messages else "it printed nothing"
    return f"{ended}: {last} (log in {attempt.log})"


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[Any]:
    """Locks `root`; the runs inherit the lock.

    Raises:
      RunError: if another sweep, or a run of an ended sweep, holds the lock.
    """
    path = root / ".lock"
    with writing(path):
        lock = path.open("a+")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            processes = " ".join(lock.read().split())
            raise RunError(
                f"another sweep, or runs left by one, are active in {root} ({processes}): wait for"
                " them, or stop them with SIGTERM"
            ) from None
        yield lock
        lock.truncate(0)


def _write_processes(lock: Any, attempts: Sequence[_Attempt]) -> None:
    """Writes the processes that hold the lock into the lock file."""
    ids = [str(a.process.pid) for a in attempts if a.state in ("running", "stopping")]
    text = f"processes {' '.join(ids)}\n"
    lock.seek(0)
    if lock.read() != text:
        with writing(lock.name):
            lock.truncate(0)
            lock.write(text)
            lock.flush()

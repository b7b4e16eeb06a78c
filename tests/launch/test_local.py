"""Runs as processes on this machine: concurrency, failures and Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hybridlm.errors import RunError, UserError
from launch.live_table import LiveTable
from launch.local import LocalLauncher
from launch.site import LocalSite


def interrupt_when(condition, number=signal.SIGINT):
    """Sends this process a signal once `condition` holds."""

    def wait():
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_at_most_parallel_runs_are_active_and_all_finish(jobs, stub, sessions, tmp_path, capfd):
    made = jobs(tmp_path, 0.1, 0.2, 0.3, steps=6)
    site = LocalSite(gpus=(4, 5), env={"SITE": "here"})
    assert LocalLauncher(site, 2).submit(made, tmp_path) == 0
    times = [sessions(tmp_path / job.name) for job in made]
    assert [t[0]["SITE"] for t in times] == ["here"] * 3
    assert [t[0]["CUDA_VISIBLE_DEVICES"] for t in times[:2]] == ["4", "5"]
    first_end = min(times[0][1]["end"], times[1][1]["end"])
    assert times[1][0]["at"] < first_end <= times[2][0]["at"], (
        "the third run must start after one of the first two"
    )
    out, err = capfd.readouterr()
    assert (
        out.count("finished") == 6 and "4.5000" in out and not err
    )  # as it ends, and in the table


def test_a_failure_does_not_stop_other_runs_and_is_one_sentence(jobs, stub, tmp_path, capfd):
    made = jobs(tmp_path, 1e30, 0.1)
    assert LocalLauncher(LocalSite(), 1).submit(made, tmp_path) == 1
    out, err = capfd.readouterr()
    log = tmp_path / "logs" / "lr=1e+30.log"
    assert err == f"hybridlm: run lr=1e+30 failed (1): the run has diverged (log in {log})\n"
    assert "lr=0.1: finished" in out and (tmp_path / "lr=0.1" / "saved").read_text() == "4"


def test_interrupted_runs_save_and_the_next_call_continues(jobs, stub, sessions, tmp_path, capfd):
    made = jobs(tmp_path, 0.1, 0.2, steps=40)
    thread = interrupt_when((tmp_path / "lr=0.1" / "metrics.jsonl").exists)
    assert LocalLauncher(LocalSite(), 1).submit(made, tmp_path) == 75
    thread.join()
    assert "SIGINT received" in capfd.readouterr().out
    reached = int((tmp_path / "lr=0.1" / "saved").read_text())
    assert 1 <= reached < 40 and not (tmp_path / "lr=0.2").exists()
    assert LocalLauncher(LocalSite(), 2).submit(made, tmp_path) == 0
    assert [s["start"] for s in sessions(tmp_path / "lr=0.1") if "start" in s] == [0, reached]


def test_a_second_interrupt_kills(jobs, stub, tmp_path, capfd, monkeypatch):
    made = jobs(tmp_path, 0.1, steps=400)
    threads = [interrupt_when((tmp_path / "lr=0.1" / "metrics.jsonl").exists)]

    def twice():
        threads.append(interrupt_when(lambda: True))

    print_line = LiveTable.print_line

    def print_and_interrupt(table, text):
        print_line(table, text)
        if "received" in text:
            twice()

    monkeypatch.setattr(LiveTable, "print_line", print_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        LocalLauncher(LocalSite(), 1).submit(made, tmp_path)
    for thread in threads:
        thread.join()


def test_a_killed_run_is_named(jobs, stub, tmp_path, capfd, monkeypatch):
    killer = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr("launch.local.PROGRAM", killer)
    assert LocalLauncher(LocalSite(), 1).submit(jobs(tmp_path, 0.1), tmp_path) == 1
    assert "run lr=0.1 was killed by SIGKILL: it printed nothing" in capfd.readouterr().err


def test_a_root_locked_by_active_runs_is_refused(jobs, stub, tmp_path):
    """Runs inherit the lock of their sweep and keep it after the sweep has ended."""
    with (tmp_path / ".lock").open("a+") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        left = subprocess.Popen(["sleep", "60"], pass_fds=(lock.fileno(),))
        lock.write(f"processes {left.pid}\n")
    try:
        with pytest.raises(RunError, match=f"left by one, are active in .* .processes {left.pid}."):
            LocalLauncher(LocalSite(), 1).submit(jobs(tmp_path, 0.1), tmp_path)
    finally:
        left.kill()
        left.wait()


def test_gpus_must_divide():
    with pytest.raises(UserError, match="--parallel 2 does not divide the 3 GPUs"):
        LocalLauncher(LocalSite(gpus=(0, 1, 2)), 2)


class Screen:
    """A terminal of 40 columns that stores the text written to it."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def writelines(self, lines):
        self.text += "".join(lines)

    def flush(self):
        pass


def test_the_table_is_redrawn_in_place_within_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "6")
    screen = Screen()
    table = LiveTable(screen)
    rows = [(f"lr={n}" + "x" * 40, "running", "1/4", "5.0000", "") for n in range(9)]
    table.show(rows)
    first = screen.text.splitlines()
    assert len(first) == 5 and all(len(line) < 40 for line in first)
    assert first[-1] == "and 6 more"
    table.show(rows[:1])
    assert "\x1b[5A\x1b[J" in screen.text, "the cursor must move up five lines"
    table.print_line("lr=0: finished")
    assert "\x1b[2A\x1b[Jlr=0: finished\n" in screen.text

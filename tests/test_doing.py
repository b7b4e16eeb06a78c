"""What takes long is said with the elapsed time, and what does not is not mentioned."""

import io
import re
import sys
import threading
import time

import pytest

from hybridlm import progress
from hybridlm.progress import doing, duration, rewrite, write


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def said(monkeypatch):
    """What is said on stderr, by work that may take 0.05 s unmentioned."""
    monkeypatch.setattr(progress, "PATIENCE", 0.05)

    def on(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return on


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_log_has_a_line_at_the_start_and_the_elapsed_time_at_the_end(said):
    log = said(io.StringIO())
    with doing("compiling"):
        until(log.getvalue)
        assert log.getvalue() == "compiling ...\n"
    assert re.fullmatch(r"compiling \.\.\.\ncompiling: \d+s\n", log.getvalue())


def test_a_terminal_has_one_line_that_ends_with_the_elapsed_time(said):
    terminal = said(Terminal())
    with doing("compiling"):
        until(lambda: terminal.getvalue().count("\r") >= 2)  # rewritten after a second
    shown = terminal.getvalue()
    assert shown.startswith("\rcompiling ... 0s\rcompiling ... 1s")
    assert re.search(r"\r +\rcompiling: \d+s\n$", shown) and shown.count("\n") == 1


def test_short_work_is_not_mentioned_even_if_it_fails(said, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 5.0)
    log = said(io.StringIO())
    with pytest.raises(ZeroDivisionError), doing("dividing"):
        raise ZeroDivisionError
    with doing("adding"):
        pass
    assert not log.getvalue()


def test_of_nested_work_the_innermost_is_named(said):
    log = said(io.StringIO())
    with doing("evaluating"):
        with doing("compiling"):
            until(log.getvalue)
            assert log.getvalue() == "compiling ...\n"
    assert "evaluating" not in log.getvalue().splitlines()[0]


def test_other_hosts_are_silent(said, monkeypatch):
    monkeypatch.setattr(progress, "_silent", False)
    progress.silence()
    log = said(io.StringIO())
    with doing("compiling"):
        time.sleep(0.1)
    assert not log.getvalue()


def test_no_thread_is_left(said):
    said(io.StringIO())
    before = threading.active_count()
    for _ in range(20):
        with doing("adding"):
            pass
    until(lambda: threading.active_count() <= before)


def test_a_message_replaces_the_rewritten_line_of_another_stream():
    terminal, log = Terminal(), io.StringIO()
    rewrite(terminal, "step 10")
    write(log, "saved")
    write(log, "done")
    assert terminal.getvalue() == "\rstep 10\r       \r"
    assert log.getvalue() == "saved\ndone\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (42.4, "42s"), (185, "3m05s"), (3725, "1h02m")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text

"""The progress line shows all figures, and does not wrap on a terminal."""

import io

import pytest

from hybridlm.train.progress import Progress

RECORD = dict(
    step=600,
    loss=1.23456,
    bits_per_byte=1.78109,
    tokens_per_second=4321.0,
    mfu=0.21,
    eta_seconds=185.0,
    skipped=0,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    Progress(600, stream).update(RECORD)
    return stream.getvalue()


def test_a_log_has_the_full_line(monkeypatch):
    assert shown(io.StringIO(), 20, monkeypatch) == (
        "step 600/600  loss 1.2346 nats  1.7811 bits/byte  4,321 tokens/s  MFU 21.0%  ETA 3m05s\n"
    )


def test_figures_of_documents_alone_stand_in_brackets_where_they_differ():
    stream = io.StringIO()
    real = dict(real_tokens_per_second=2000.0, real_mfu=0.0944)
    Progress(600, stream).update(RECORD | real)
    assert "  4,321 tokens/s (2,000 real)  MFU 21.0% (9.4% real)  ETA" in stream.getvalue()
    Progress(600, stream := io.StringIO()).update(RECORD | dict(real_mfu=0.2095))
    assert "real" not in stream.getvalue()


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_live_line_fits_the_terminal(columns, monkeypatch):
    line = shown(Terminal(), columns, monkeypatch).removeprefix("\r")
    assert len(line) < columns and "\n" not in line
    if columns >= 80:
        for part in (
            "step 600/600",
            "1.2346 nats",
            "1.7811 bits/byte",
            "4,321 tok",
            "MFU",
            "ETA 3m05s",
        ):
            assert part in line


@pytest.mark.parametrize(
    "changes, expected",
    [
        (dict(kl=0.5), "KL 0.5000 nats"),
        (dict(relative_error=0.25, layers_skipped=0.0), "squared error 1.235  relative 0.2500"),
        (dict(relative_error=0.25, layers_skipped=2.0), "2 layers not finite"),
        (dict(of_teacher_forward=0.34), "34% of the teacher's forward"),
    ],
)
def test_a_run_with_a_teacher_shows_what_it_learns_from_it(changes, expected):
    stream = io.StringIO()
    Progress(600, stream).update(RECORD | changes)
    assert expected in stream.getvalue()

"""The selection of tests: what is named runs, and every test's day comes."""

import datetime
import subprocess
import sys

import pytest

from tests import selection


class Item:
    def __init__(self, nodeid: str, slow: bool = False):
        self.nodeid, self.slow = nodeid, slow

    def get_closest_marker(self, name):
        return self.slow or None


class Config:
    def __init__(self, slow: str, long: str):
        self.option = type("option", (), dict(slow=slow, long=long))
        self.hook = type("hook", (), dict(pytest_deselected=lambda items: None))


@pytest.fixture
def today(monkeypatch):
    """`today(n)` makes the day n."""

    def set_day(number):
        class Date(datetime.date):
            @classmethod
            def today(cls):
                return datetime.date.fromordinal(number)

        monkeypatch.setattr(selection.datetime, "date", Date)

    return set_day


def selected(slow: str, long: str) -> list[str]:
    items = [Item(f"tests/a.py::short[{i}]") for i in range(9)]
    items += [Item(f"tests/a.py::long[{i}]@group") for i in range(400)]
    items += [Item(f"tests/a.py::slow[{i}]", slow=True) for i in range(400)]
    selection.pytest_collection_modifyitems(Config(slow, long), items)
    return [item.nodeid for item in items]


def test_each_long_and_slow_test_runs_once_in_its_share_of_days(today, monkeypatch):
    monkeypatch.setattr(selection, "read", lambda: {f"tests/a.py::long[{i}]" for i in range(400)})
    seen = []
    for day in range(selection.SLOW_SHARE):
        today(700_000 + day)
        seen += (names := selected("sample", "sample"))
        assert sum("short" in name for name in names) == 9
        assert 0.5 < sum("long" in name for name in names) / (400 / selection.LONG_SHARE) < 1.5
    times = {name: seen.count(name) for name in seen}
    assert len(times) == 9 + 800
    slow, long = ({n for t, n in times.items() if word in t} for word in ("slow", "long"))
    assert slow == {1} and long == {selection.SLOW_SHARE // selection.LONG_SHARE}
    assert len(selected("all", "all")) == 809 and len(selected("none", "all")) == 409


def test_the_names_of_tests_lose_their_group_alone():
    name = selection.test_name
    assert name("tests/a.py::f[x@y]@group of k") == "tests/a.py::f[x@y]"
    assert name("tests/a.py::f@group") == "tests/a.py::f" == name("tests/a.py::f")


def test_a_test_that_was_recorded_and_is_gone_is_named(root):
    """A renamed test would run every day, and its old line stay."""
    for name in selection.read():
        file, _, function = name.partition("::")
        text = (root / file).read_text() if (root / file).is_file() else ""
        assert f"def {function.partition('[')[0]}(" in text, name


PROGRAM = """
import pytest, time

@pytest.mark.parametrize("i", range(3))
def test_busy(i):
    end = time.process_time() + i
    while time.process_time() < end:
        pass
"""


def test_long_tests_are_recorded_by_processor_time(tmp_path, monkeypatch, root):
    (tmp_path / "test_program.py").write_text(PROGRAM)
    (tmp_path / "conftest.py").write_text(
        "import pathlib\nfrom tests import selection\nfrom tests.selection import *\n"
        "selection.FILE = pathlib.Path('long.tsv')\nselection.LONG = 0.9\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    environment = {"PYTHONPATH": str(root), "PATH": ""}

    def ran(*options):
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "3 passed" in ran("--record_long")
    lines = (tmp_path / "long.tsv").read_text().splitlines()
    assert [line.split("\t")[1] for line in lines] == [
        "test",
        "test_program.py::test_busy[1]",
        "test_program.py::test_busy[2]",
    ]
    assert "1 passed" in ran("--long", "none")
    assert "3 passed" in ran("test_program.py"), "a named file is run whole"
    with pytest.raises(AssertionError, match="name no tests"):
        ran("--record_long", "test_program.py")
    assert len((tmp_path / "long.tsv").read_text().splitlines()) == 3

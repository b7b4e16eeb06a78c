"""Selects the tests of a run, and records which are long.

Even without the tests marked `slow`, all would take an hour on two slow cores. `make test` runs all
short tests, one in `LONG_SHARE` of those that long_tests.tsv lists, and one in `SLOW_SHARE` of those
marked `slow`. The shares change daily, so that each test runs within some days. Tests that are named, by
file, folder or id, are all run but for those marked `slow`; `--slow all` runs everything.

    python -m pytest -n 2 --dist loadgroup --record_long    # measures, and writes long_tests.tsv
"""

import datetime
import os
import pathlib
import zlib
from collections import defaultdict

import pytest

SLOW_SHARE, LONG_SHARE = 160, 4
LONG = 3.0  # seconds of processor time, from which on a test is long
FILE = pathlib.Path(__file__).parent / "long_tests.tsv"

_begin = pytest.StashKey[float]()
_recorded: dict[str, float] = defaultdict(float)


def pytest_addoption(parser):
    parser.addoption(
        "--slow",
        choices=("none", "sample", "all"),
        default="sample",
        help="slow tests to run: none, a sample that rotates by the day (default), or all",
    )
    parser.addoption(
        "--long",
        choices=("none", "sample", "all"),
        help="the same for tests of long_tests.tsv; by default a sample of the whole suite, and all of"
        " files, folders and tests that are named",
    )
    parser.addoption(
        "--record_long",
        action="store_true",
        help="run all long tests, no slow ones, and write long_tests.tsv; only without names of tests",
    )


def pytest_configure(config):
    named = config.args_source == pytest.Config.ArgsSource.ARGS  # the same in every worker
    if config.option.record_long:
        if named or config.option.keyword or config.option.collectonly:
            raise pytest.UsageError("--record_long measures the whole suite: name no tests")
        config.option.slow = "none"
    if config.option.long is None:
        every = named or config.option.slow == "all" or config.option.record_long
        config.option.long = "all" if every else "sample"


def pytest_collection_modifyitems(config, items):
    today, long = datetime.date.today().toordinal(), read()

    def chosen(item) -> bool:
        if item.get_closest_marker("slow"):
            return _of_the_day(item.nodeid, config.option.slow, SLOW_SHARE, today)
        if test_name(item.nodeid) in long:
            return _of_the_day(item.nodeid, config.option.long, LONG_SHARE, today)
        return True

    kept = [chosen(item) for item in items]
    config.hook.pytest_deselected(items=[i for i, keep in zip(items, kept) if not keep])
    items[:] = [i for i, keep in zip(items, kept) if keep]


def _of_the_day(name: str, mode: str, share: int, today: int) -> bool:
    return mode == "all" or (mode == "sample" and (zlib.crc32(name.encode()) + today) % share == 0)


def test_name(nodeid: str) -> str:
    """The id without the group that pytest-xdist writes after it."""
    path, _, rest = nodeid.partition("::")
    return f"{path}::{rest[: rest.rindex(']') + 1] if ']' in rest else rest.partition('@')[0]}"


test_name.__test__ = False


def read() -> set[str]:
    """The ids of the long tests."""
    lines = FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
    return {line.split("\t")[1] for line in lines[1:]}


def write(seconds: dict[str, float]) -> None:
    """Writes the ids of the long ones among these tests."""
    found = sorted((n, s) for n, s in seconds.items() if s >= LONG)
    FILE.write_text("seconds\ttest\n" + "".join(f"{s:.0f}\t{n}\n" for n, s in found))


def _processor_time() -> float:
    """Of this process and of those that it waited for, in seconds."""
    return sum(os.times()[:4])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.stash[_begin] = _processor_time()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    item.user_properties.append(("processor_time", _processor_time() - item.stash[_begin]))


def pytest_runtest_logreport(report):
    if report.when == "teardown":  # in every process; the first one has all
        for name, value in report.user_properties:
            if name == "processor_time":
                _recorded[test_name(report.nodeid)] = value


def pytest_sessionfinish(session, exitstatus):
    config = session.config
    if config.option.record_long and not hasattr(config, "workerinput") and exitstatus in (0, 1):
        write(_recorded)

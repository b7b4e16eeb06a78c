"""Folders that exist only once they are complete, whatever happens to their writers."""

import os
import socket
import subprocess

import pytest

from hybridlm.data.files import new_folder


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "below" / "a") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "below" / "a").exists()
    assert names(tmp_path / "below") == ["a"] and names(tmp_path / "below" / "a") == ["x"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "a") as partial:
        (partial / "x").write_text("1")
        raise KeyError
    assert names(tmp_path) == []


def test_of_two_writers_the_first_wins(tmp_path):
    with new_folder(tmp_path / "a") as one:
        (one / "x").write_text("1")
        with new_folder(tmp_path / "a") as two:
            (two / "x").write_text("2")
    assert names(tmp_path) == ["a"] and (tmp_path / "a" / "x").read_text() == "2"


def test_what_a_killed_process_left_is_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept = [
        f"a.partial-elsewhere-{ended.pid}-0",
        f"a.partial-{socket.gethostname()}-{os.getpid()}-0",
    ]
    for name in [*kept, f"a.partial-{socket.gethostname()}-{ended.pid}-0"]:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == sorted(["a", *kept])

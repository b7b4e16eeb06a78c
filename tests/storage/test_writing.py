"""A file is written whole or not at all, and a failed write is one sentence with its path."""

import pathlib

import pytest

from hybridlm.errors import WriteError
from hybridlm.storage.writing import AppendedFile, make_folder, write_bytes, write_text


def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_draft(tmp_path, full_disk):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with (
        full_disk(1000),
        pytest.raises(WriteError, match=f"^{path} cannot be written: File too la"),
    ):
        write_bytes(path, bytes(1001))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.json": "old"}
    write_bytes(path, bytes(1001))
    assert path.read_bytes() == bytes(1001)


def test_a_full_device_is_named():
    """/dev/full takes no byte; the error comes with the write, not when the file is closed."""
    file = AppendedFile(pathlib.Path("/dev/full"))
    with pytest.raises(WriteError, match="^/dev/full cannot be written: No space left on device$"):
        file.write(b"x")
    file.close()


def test_what_is_appended_before_the_disk_is_full_stays(tmp_path, full_disk):
    file = AppendedFile(tmp_path / "a")
    with full_disk(10):
        file.write(b"12345")
        with pytest.raises(WriteError, match="a cannot be written: File too large"):
            file.write(b"67890123")
    file.close()
    assert (tmp_path / "a").read_bytes() == b"1234567890"


@pytest.mark.parametrize("make", [make_folder, AppendedFile, lambda p: write_text(p, "")])
def test_a_place_that_cannot_be_written_is_named(make):
    with pytest.raises(WriteError, match="^/proc/none cannot be written: "):
        make(pathlib.Path("/proc/none"))

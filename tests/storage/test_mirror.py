"""A mirrored folder reaches the bucket whole, in time, and again only where it changed."""

import errno
import pathlib
import tempfile
import time

import pytest

from hybridlm.errors import StorageError, WriteError
from hybridlm.runs.workdir import Workdir
from hybridlm.storage import objects
from hybridlm.storage.mirror import Mirror


def test_files_are_uploaded_when_asked_and_only_if_they_changed(bucket, gate):
    mirror = Mirror(bucket)
    (mirror.local / "events").mkdir()
    (mirror.local / "a").write_bytes(b"1")
    (mirror.local / "events" / "b").write_bytes(b"2")
    mirror.upload()
    assert objects.keys(bucket) == ["a", "events/b"]
    (mirror.local / "a").write_bytes(b"12")
    gate.requests.clear()
    mirror.close()
    assert objects.read(f"{bucket}/a") == b"12"
    assert not [path for _, path in gate.requests if "events" in path]
    assert not mirror.local.exists()


def test_files_are_uploaded_from_time_to_time(bucket):
    mirror = Mirror(bucket, every=0.2)
    (mirror.local / "a").write_bytes(b"1")
    deadline = time.monotonic() + 10
    while objects.read(f"{bucket}/a") is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert objects.read(f"{bucket}/a") == b"1"
    mirror.close()


def test_a_downloaded_file_goes_on_where_it_ended(bucket):
    objects.write(f"{bucket}/a", b"1\n")
    mirror = Mirror(bucket)
    mirror.download("a")
    mirror.download("absent")
    with (mirror.local / "a").open("ab") as file:
        file.write(b"2\n")
    mirror.close()
    assert objects.read(f"{bucket}/a") == b"1\n2\n"
    assert objects.keys(bucket) == ["a"]


def test_what_cannot_be_uploaded_is_said(storage_servers):
    mirror = Mirror("s3://nowhere/x")
    (mirror.local / "a").write_bytes(b"1")
    with pytest.raises(StorageError, match="no bucket nowhere"):
        mirror.upload()
    with pytest.raises(StorageError):
        mirror.close()


@pytest.fixture
def reading_fails(monkeypatch):
    """Makes reading the mirrored file "a" raise an error."""
    read = pathlib.Path.read_bytes

    def fail(error):
        def reading(path):
            if path.name == "a":
                raise error
            return read(path)

        monkeypatch.setattr(pathlib.Path, "read_bytes", reading)

    return fail


def test_a_failure_between_two_flushes_is_said_and_ends_the_run_at_its_next_record(
    storage_servers, reading_fails, capsys
):
    mirror = Mirror("s3://bucket/failing", every=0.05)
    folder = Workdir(pathlib.Path("unused"), None, mirror)
    (uploads,) = folder.uploads()
    uploads.write({"step": 1})
    reading_fails(OSError(errno.EIO, "Input/output error"))
    (mirror.local / "a").write_bytes(b"1")
    mirror._thread.join(timeout=30)
    sentence = f"{mirror.local / 'a'} cannot be read and uploaded to s3://bucket/failing: "
    assert f"hybridlm: {sentence}" in capsys.readouterr().err
    for ends in (lambda: uploads.write({"step": 2}), uploads.flush, folder.close):
        with pytest.raises(StorageError) as caught:
            ends()
        assert str(caught.value).startswith(sentence)


def test_drafts_and_files_that_are_gone_are_not_uploaded(bucket, reading_fails):
    mirror = Mirror(bucket)
    for name in ("a", "b", "c.tmp"):
        (mirror.local / name).write_bytes(b"1")
    reading_fails(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    mirror.close()
    assert objects.keys(bucket) == ["b"]


def test_a_folder_that_was_removed_is_said(storage_servers):
    mirror = Mirror("s3://bucket/removed")
    mirror.local.rmdir()
    with pytest.raises(StorageError, match=f"^{mirror.local}, which is copied to .* was removed$"):
        mirror.close()


def test_a_full_disk_is_one_sentence(bucket, full_disk, monkeypatch):
    objects.write(f"{bucket}/a", bytes(2000))
    mirror = Mirror(bucket)
    with full_disk(1000), pytest.raises(WriteError, match="/a cannot be written: File too large$"):
        mirror.download("a")
    assert not list(mirror.local.iterdir())
    mirror.discard()

    def full(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(WriteError, match="^a temporary folder cannot be written: No space left"):
        Mirror(bucket)

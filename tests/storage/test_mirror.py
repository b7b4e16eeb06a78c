"""A mirrored folder reaches the bucket whole, in time, and again only where it changed."""

import time

import pytest

from hybridlm.errors import StorageError
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

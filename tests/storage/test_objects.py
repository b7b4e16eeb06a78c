"""Objects are whole or absent, conditional writes exclude each other, and 503 is waited out."""

import threading

import pytest

from hybridlm.errors import StorageError, UserError
from hybridlm.storage import objects, open_path


def test_what_is_written_is_read_and_listed_and_deleted(bucket):
    folder = open_path(bucket)
    big = bytes(range(256)) * 999 + b"end"
    (folder / "a.txt").write_text("text")
    (folder / "sub" / "big").write_bytes(big)
    assert objects.keys(bucket) == ["a.txt", "sub/big"]
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "sub"]
    assert (folder / "sub").is_dir() and (folder / "a.txt").is_file()
    assert (folder / "a.txt").read_text() == "text"
    assert (folder / "sub" / "big").read_bytes() == big
    assert not (folder / "a").exists() and not (folder / "su").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "none").read_bytes()
    folder.rmtree()
    assert objects.keys(bucket) == [] and not folder.exists()


@pytest.mark.parametrize("size", [1, objects._READ - 1, objects._READ, objects._READ + 1])
def test_an_object_of_any_size_is_read_whole(bucket, size):
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    objects.write(f"{bucket}/x", data)
    assert b"".join(objects.stream(f"{bucket}/x")) == data


def test_of_two_writes_on_one_version_the_second_is_refused(bucket):
    url = f"{bucket}/x"
    first = objects.write(url, b"1", objects.ABSENT)
    assert objects.write(url, b"2", objects.ABSENT) is None
    second = objects.write(url, b"3", first)
    assert second and objects.write(url, b"4", first) is None
    assert objects.read(url) == b"3"
    assert not objects.delete(url, first) and objects.delete(url, second)
    assert objects.read(url) is None


def test_a_file_appears_only_when_its_block_ends_well(bucket):
    path = open_path(bucket) / "x"
    with pytest.raises(KeyError), path.open("w") as file:
        file.write("half")
        raise KeyError
    assert not path.exists()
    with path.open("w") as file:
        file.write("whole")
        file.flush()
        assert not path.exists()
    assert path.read_text() == "whole"


@pytest.mark.slow
def test_a_server_that_answers_503_is_asked_again_and_the_user_is_told(bucket, gate, capfd):
    objects.write(f"{bucket}/x", b"1")
    gate.fail_for(3.0)
    objects.write(f"{bucket}/x", b"2")
    assert objects.read(f"{bucket}/x") == b"2"
    assert f"hybridlm: writing {bucket}/x: no answer for 2 s" in capfd.readouterr().err


@pytest.mark.slow
def test_a_server_that_never_recovers_is_given_up(bucket, gate, monkeypatch):
    monkeypatch.setattr(objects, "GIVE_UP_AFTER", 2.5)
    with (
        gate.answering_503(),
        pytest.raises(StorageError, match=r"did not answer.* for \d seconds"),
    ):
        objects.read(f"{bucket}/x")


def test_a_bucket_that_does_not_exist_is_named(storage_servers):
    with pytest.raises(StorageError, match="there is no bucket nowhere"):
        objects.write("s3://nowhere/x", b"")


def test_a_guard_prevents_writes_below_its_folder_only(bucket):
    def refuse():
        raise RuntimeError("guarded")

    objects.write(f"{bucket}/a/x", b"")
    objects.guard(f"{bucket}/a", refuse)
    try:
        objects.write(f"{bucket}/ab", b"")
        for act in (
            lambda: objects.write(f"{bucket}/a/y", b""),
            lambda: objects.delete(f"{bucket}/a/x"),
            lambda: objects.delete_tree(f"{bucket}/a"),
        ):
            with pytest.raises(RuntimeError, match="guarded"):
                act()
    finally:
        objects.unguard(f"{bucket}/a")
    assert objects.keys(bucket) == ["a/x", "ab"]


def test_the_named_objects_of_a_tree_are_deleted_first(bucket, gate):
    for name in ("t/a", "t/b/mark", "t/c"):
        objects.write(f"{bucket}/{name}", b"x")
    gate.requests.clear()
    objects.delete_tree(f"{bucket}/t", first=("mark",))
    deleted = [path for method, path in gate.requests if method == "DELETE"]
    assert len(deleted) == 3 and "mark" in deleted[0]


@pytest.mark.parametrize(
    "text, said",
    [
        ("gcs://bucket/x", "did you mean gs://"),
        ("s3a://bucket/x", "did you mean s3://"),
        ("az://bucket/x", "valid are gs://, s3://"),
        ("file:///tmp/x", "leave out file://"),
        ("gs:/bucket/x", "begins with gs://"),
        ("gs:///x", "names no bucket"),
        ("s3://bucket//x", "a part that is empty"),
        ("s3://bucket/x/../y", "a part that is empty, '.' or '..'"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused(text, said):
    with pytest.raises(UserError, match=f"^{text}.*{said}"):
        open_path(text)


@pytest.mark.parametrize("text", ["a/b", "/a:b", "x:y/z", "./gs", "~/s3"])
def test_other_paths_are_of_this_machine(text):
    assert str(open_path(text)) == text.removeprefix("./")


def test_threads_may_read_and_write_at_once(bucket):
    def work(i):
        objects.write(f"{bucket}/{i}", str(i).encode())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert objects.keys(bucket) == [str(i) for i in range(8)]

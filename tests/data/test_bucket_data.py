"""Text, tokens and tokenizers in a bucket are the same as on this machine."""

import json
import urllib.parse

import numpy as np
import pytest
from data_helpers import (
    BYTES,
    assert_batches_equal,
    draw_ids,
    draw_texts,
    write_jsonl,
    write_megatron,
    write_shards,
)

from hybridlm.data import open_pipeline, open_shards, open_tokenizer, tokenize, train_bpe
from hybridlm.data.settings import DataConfig
from hybridlm.data.sources import KINDS, read_source
from hybridlm.data.tokenizers import TokenizerConfig
from hybridlm.errors import DataError, StorageError, WriteError
from hybridlm.storage import local_copies, objects, open_path
from hybridlm.storage.local_copies import LIST


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Changes the user's cache, as another machine has another one."""

    def use(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches" / name))

    use("first")
    return use


@pytest.fixture
def documents():
    return draw_texts(np.random.default_rng(), 40)


def pipeline(sources, workdir, **settings):
    settings = {"seq_len": 32, "batch_size": 4, "heldout_fraction": 0.3, **settings}
    return open_pipeline(DataConfig(sources=sources, **settings), seed=0, workdir=workdir)


def put(folder, bucket):
    for path in (p for p in folder.rglob("*") if p.is_file()):
        objects.write(f"{bucket}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def test_batches_are_those_of_local_files_and_tokens_are_shared(
    bucket, machine, tmp_path, documents, gate
):
    here = tmp_path / "text"
    write_jsonl(here / "part-0.jsonl", documents[:20])
    write_jsonl(here / "sub" / "part-1.jsonl", documents[20:])
    (here / "notes.txt").write_text("not in the source")
    put(here, f"{bucket}/text")
    sources = {"a": dict(kind="jsonl", path=f"{bucket}/text/**/*.jsonl")}
    local = {"a": dict(kind="jsonl", path=f"{here}/**/*.jsonl")}
    wanted = pipeline(local, tmp_path / "run")
    made = pipeline(sources, open_path(f"{bucket}/run"))
    shared = [key for key in objects.keys(f"{bucket}/run") if key.endswith("manifest.json")]
    assert len(shared) == 1
    gate.requests.clear()
    machine("second")
    again = pipeline(sources, open_path(f"{bucket}/run"))
    for other in (made, again):
        assert other.counts()["sources"]["a"]["sha256"] == wanted.counts()["sources"]["a"]["sha256"]
        for step in (0, 7):
            assert_batches_equal(other.batch(step), wanted.batch(step))
    assert not [path for method, path in gate.requests if method in ("PUT", "POST")]


def test_tokens_that_were_not_uploaded_whole_are_made_again(bucket, machine, tmp_path, documents):
    source = write_jsonl(tmp_path / "a.jsonl", documents)
    sources = {"a": dict(kind="jsonl", path=source.path)}
    cache = f"{bucket}/cache"
    pipeline(sources, tmp_path, token_cache=cache)
    (listed,) = [key for key in objects.keys(cache) if key.endswith(LIST)]
    objects.delete(f"{cache}/{listed}")
    objects.write(f"{cache}/{listed.replace(LIST, 'train-00000.bin')}", b"half")
    machine("second")
    pipeline(sources, tmp_path, token_cache=cache)
    assert objects.exists(f"{cache}/{listed}")
    objects.write(f"{cache}/{listed.replace(LIST, 'train-00000.bin')}", b"other")
    machine("third")
    with pytest.raises(StorageError, match="train-00000.bin is not the file that was uploaded"):
        pipeline(sources, tmp_path, token_cache=cache)
    objects.write(f"{cache}/{listed}", b"[" * 100_000)
    machine("fourth")
    with pytest.raises(StorageError, match="is not the list that was uploaded"):
        pipeline(sources, tmp_path, token_cache=cache)


def test_shards_are_written_to_and_read_from_a_bucket(bucket, tmp_path, documents):
    source, tokenizer = write_jsonl(tmp_path / "a.jsonl", documents), open_tokenizer(BYTES)
    tokenize(source, tokenizer, f"{bucket}/tokens", 0.3)
    here = open_shards(tokenize(source, tokenizer, tmp_path / "t", 0.3), tokenizer=tokenizer)
    there = open_shards(f"{bucket}/tokens", tokenizer=tokenizer)
    assert there.manifest == here.manifest
    with pytest.raises(DataError, match="exists"):
        tokenize(source, tokenizer, f"{bucket}/tokens", 0.3)
    objects.delete(f"{bucket}/tokens/manifest.json")
    with pytest.raises(DataError, match="manifest.json is missing"):
        open_shards(f"{bucket}/tokens", tokenizer=tokenizer)
    with pytest.raises(StorageError, match="there is no such file or folder"):
        open_shards(f"{bucket}/none", tokenizer=tokenizer)


def test_stores_of_tokens_are_sources(bucket, tmp_path, documents):
    folder = write_shards(tmp_path / "shards", documents)
    ids = [[*document, 257] for document in draw_ids(np.random.default_rng(), 60)]
    flat = tmp_path / "flat"
    flat.mkdir()
    np.concatenate(ids).astype("<u2").tofile(flat / "train.bin")
    write_megatron(tmp_path / "megatron" / "w", [[document] for document in ids])
    write_megatron(tmp_path / "megatron" / "other", [[ids[0]]])
    for made in (folder, flat, tmp_path / "megatron"):
        put(made, f"{bucket}/{made.name}")

    def sources(root):
        return {
            "s": dict(kind="tokens", path=f"{root}/shards"),
            "f": dict(kind="flat", path=f"{root}/flat/train.bin"),
            "m": dict(kind="megatron", path=f"{root}/megatron/w"),
            "n": dict(kind="megatron", path=f"{root}/megatron/[w]*"),
            "o": dict(kind="megatron", path=f"{root}/megatron"),
        }

    here = pipeline(sources(tmp_path), tmp_path / "a")
    there = pipeline(sources(bucket), tmp_path / "b")
    for step in range(3):
        assert_batches_equal(there.batch(step), here.batch(step))


def test_a_chat_template_may_lie_in_a_bucket(bucket, tmp_path, documents):
    roles = ("user", "assistant")
    chats = [[dict(role=r, content=f"{r} {d}") for r in roles] for d in documents]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"messages": c}) + "\n" for c in chats))
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }};{% endfor %}")
    for name in ("c.jsonl", "t.jinja"):
        objects.write(f"{bucket}/{name}", (tmp_path / name).read_bytes())

    def source(root, template="t.jinja"):
        return dict(kind="chat", path=f"{root}/c.jsonl", template=f"{root}/{template}")

    here = pipeline({"a": source(tmp_path)}, tmp_path / "a")
    there = pipeline({"a": source(bucket)}, tmp_path / "b")
    assert_batches_equal(there.batch(0), here.batch(0))
    with pytest.raises(DataError, match=f"the chat template {bucket}/none cannot be read"):
        read_source(source(bucket, "none"), "a").check(open_tokenizer(BYTES))


SHARDS = [f"{split}-00000.{ending}" for split in ("heldout", "train") for ending in ("bin", "idx")]
FILES = {
    "tokens": [*SHARDS[:2], "manifest.json", *SHARDS[2:]],
    "megatron": ["w.bin", "w.idx"],
    "arrow": ["data-0.arrow", "data-1.arrow", "state.json"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_found_before_anything_is_copied(kind, bucket, tmp_path, documents):
    """As a run's start does: objects are listed, of lists of files are read, and none is copied."""
    tokenizer = open_tokenizer(BYTES)

    def check(path, **settings):
        return read_source(dict(kind=kind, path=path, **settings), "a").check(tokenizer)

    names = FILES.get(kind, ["a.jsonl", "sub/b.jsonl"])
    for name in names:
        objects.write(f"{bucket}/d/{name}", b"1")
    if kind == "tokens":
        put(write_shards(tmp_path / "d", documents), f"{bucket}/d")
    if kind == "arrow":
        state = {"_data_files": [{"filename": name} for name in names[:2]]}
        objects.write(f"{bucket}/d/state.json", json.dumps(state).encode())
    assert check(f"{bucket}/d") == names
    with pytest.raises(DataError, match=f"{bucket}/none: there is no such file or folder"):
        check(f"{bucket}/none")
    if "heldout_path" in KINDS[kind].__dataclass_fields__:
        more = {"ids_key": "ids"} if kind in ("arrow", "parquet") else {}
        with pytest.raises(DataError, match=f"{bucket}/none: there is no such file or folder"):
            check(f"{bucket}/d", heldout_path=f"{bucket}/none", **more)
    if kind == "megatron":
        assert check(f"{bucket}/d/w") == check(f"{bucket}/d/*.idx") == names
    if kind in FILES:
        objects.delete(f"{bucket}/d/{names[0]}")
        with pytest.raises(DataError, match=f"{names[0]}:? .*missing"):
            check(f"{bucket}/d")
    if kind == "tokens":
        objects.write(f"{bucket}/d/manifest.json", b"{}")
        with pytest.raises(DataError, match=f"{bucket}/d/manifest.json: is not a manifest"):
            check(f"{bucket}/d")
        objects.delete(f"{bucket}/d/manifest.json")
        with pytest.raises(DataError, match="manifest.json is missing"):
            check(f"{bucket}/d/")
    if kind == "arrow":
        objects.write(f"{bucket}/d/dataset_dict.json", b'{"splits": ["train"]}')
        with pytest.raises(DataError, match=f"holds the splits train: .*{bucket}/d/train"):
            check(f"{bucket}/d")
    assert not local_copies.cache_folder().exists()


def test_of_a_megatron_prefix_only_its_two_files_are_asked_for(bucket, gate):
    for name in ("w.bin", "w.idx", "w.bdn", "w.iin", "v.bin", "w.txt"):
        objects.write(f"{bucket}/d/{name}", b"1")
    source = read_source(dict(kind="megatron", path=f"{bucket}/d/w"), "a")
    gate.requests.clear()
    assert source.check(open_tokenizer(BYTES)) == ["w.bin", "w.idx"]
    asked = [urllib.parse.unquote(path) for _, path in gate.requests]
    assert asked and all("/d/w" in path for path in asked)
    copy = open_path(source.on_this_machine().path)
    names = sorted(p.name for p in copy.parent.iterdir() if p.name[0] != ".")
    assert copy.name == "w" and names == ["w.bin", "w.idx"]


def test_a_copy_is_used_again_until_the_objects_change(bucket, gate):
    objects.write(f"{bucket}/d/a", b"1")
    objects.write(f"{bucket}/d/.hidden", b"")
    first = local_copies.local_copy(f"{bucket}/d")
    assert sorted(p.name for p in open_path(first).iterdir() if p.name[0] != ".") == ["a"]
    assert local_copies.local_copy(f"{bucket}/d") == first
    objects.write(f"{bucket}/d/a", b"2")
    second = local_copies.local_copy(f"{bucket}/d")
    assert second != first and (open_path(second) / "a").read_bytes() == b"2"
    assert local_copies.local_file(f"{bucket}/d/a").read_bytes() == b"2"


def test_a_full_disk_is_no_failure_of_the_server(bucket, full_disk, monkeypatch):
    """A launcher starts a run again after a StorageError: in vain, as long as the disk is full."""
    objects.write(f"{bucket}/d/a.jsonl", bytes(2000))
    source = read_source(dict(kind="jsonl", path=f"{bucket}/d"), "a")
    with full_disk(1000), pytest.raises(WriteError, match="/a.jsonl cannot be written: File too "):
        source.on_this_machine()
    (copies,) = (local_copies.cache_folder() / "copies").iterdir()
    assert not list(copies.iterdir())
    monkeypatch.setattr(local_copies, "_versions", lambda root, names: dict.fromkeys(names, ""))
    monkeypatch.setattr(local_copies, "_listed", lambda url, endings: (f"{bucket}/d", ["b"], ""))
    with pytest.raises(StorageError, match="/d/b cannot be copied: there is no such object"):
        local_copies.local_copy(f"{bucket}/d")


def test_a_tokenizer_is_trained_into_and_opened_from_a_bucket(bucket, tmp_path, documents):
    here = train_bpe(documents, 270, tmp_path / "t" / "tokenizer.json")
    path = f"{bucket}/t/tokenizer.json"
    train_bpe(documents, 270, path)
    there = open_tokenizer(TokenizerConfig(kind="hf", path=path))
    assert there.fingerprint == here.fingerprint
    config = tmp_path / "t" / "tokenizer_config.json"
    config.write_text('{"eos_token": "<|bos|>"}')
    objects.write(f"{bucket}/t/{config.name}", config.read_bytes())
    both = [open_tokenizer(TokenizerConfig(kind="hf", path=str(p))) for p in (path, here.path)]
    assert both[0].eos_id == both[1].eos_id == there.bos_id

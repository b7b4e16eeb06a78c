"""Shards: documents are read back unchanged, and damaged folders raise a one-sentence error."""

import json
import shutil

import numpy as np
import pytest
from data_helpers import BYTES, draw_texts, write_shards

from hybridlm.data import open_shards, open_tokenizer, train_bpe
from hybridlm.data.settings import TokenizerConfig
from hybridlm.data.shards import MANIFEST, ShardWriter, read_manifest, write_manifest
from hybridlm.errors import DataError

TOKENIZER = open_tokenizer(BYTES)
VERIFY = pytest.mark.parametrize("verify", ["checksum", "size"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    documents = draw_texts(np.random.default_rng(), 120)
    folder = tmp_path_factory.mktemp("shards") / "tokens"
    return write_shards(folder, documents, shard_tokens=3000), documents


def split_texts(split):
    offsets = split.document_offsets()
    read = [split.read(a, b) for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist())]
    for tokens, begins in read:
        assert tokens[0] == TOKENIZER.bos_id and tokens[-1] == TOKENIZER.eos_id
        assert begins.tolist() == [True] + [False] * (len(tokens) - 1)
    return [TOKENIZER.decode(tokens) for tokens, _ in read]


@VERIFY
def test_documents_are_read_back_unchanged(written, verify):
    folder, documents = written
    shards = open_shards(folder, tokenizer=TOKENIZER, verify=verify)
    train, heldout = split_texts(shards.train), split_texts(shards.heldout)
    assert sorted(train + heldout) == sorted(documents)
    places = {text: i for i, text in enumerate(documents)}
    for texts in (train, heldout):
        found = [places[t] for t in texts]
        assert len(set(documents)) < len(documents) or found == sorted(found)
    for split, texts in ((shards.train, train), (shards.heldout, heldout)):
        size = sum(len(t.encode()) for t in texts)
        assert (split.documents, split.bytes, split.token_bytes) == (len(texts), size, size)
        assert split.tokens == size + 2 * len(texts)
    assert len(shards.manifest["splits"]["train"]["shards"]) > 2


def test_any_range_reads_across_shards(written):
    split = open_shards(written[0], tokenizer=TOKENIZER).train
    whole, begins = split.read(0, split.tokens)
    np.testing.assert_array_equal(np.flatnonzero(begins), split.document_offsets()[:-1])
    rng = np.random.default_rng()
    for _ in range(300):
        a, b = sorted(rng.integers(0, split.tokens + 1, 2).tolist())
        tokens, some = split.read(a, b)
        assert tokens.dtype == np.int32 and some.dtype == bool
        np.testing.assert_array_equal(tokens, whole[a:b])
        np.testing.assert_array_equal(some, begins[a:b])
    with pytest.raises(IndexError):
        split.read(0, split.tokens + 1)


def shard_file(folder, suffix):
    return sorted(folder.glob(f"train-*{suffix}"))[1]


def truncate(folder):
    path = shard_file(folder, ".bin")
    path.write_bytes(path.read_bytes()[:-2])
    return [path.name, "the shard is truncated", "the manifest says"]


def lengthen(folder):
    path = shard_file(folder, ".bin")
    path.write_bytes(path.read_bytes() + b"\0\0")
    return [path.name, "the shard is too long"]


def remove(folder):
    path = shard_file(folder, ".bin")
    path.unlink()
    return [path.name, "the shard is missing"]


def remove_index(folder):
    path = shard_file(folder, ".idx")
    path.unlink()
    return [path.name, "the shard is missing"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[np.random.default_rng().integers(len(data))] ^= 1
    path.write_bytes(data)


def flip_tokens(folder):
    path = shard_file(folder, ".bin")
    flip(path)
    return [path.name, "the shard is corrupt", "SHA-256"]


def pickled_index(folder):
    """Replaces an index by a pickle of the same size, which is read as numbers and refused."""
    path = shard_file(folder, ".idx")
    size = path.stat().st_size
    np.save(path.with_suffix(".npy"), np.array([Bomb()], dtype=object), allow_pickle=True)
    data = path.with_suffix(".npy").read_bytes()
    path.write_bytes(data[:size].ljust(size, b"\0"))
    return [path.name]


class Bomb:
    def __reduce__(self):
        return (_explode, ())


def _explode():
    raise AssertionError("a file of the shard was executed")


def edit_manifest(folder):
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1', 1))
    return [MANIFEST, "was changed after it was written"]


def break_manifest(folder):
    path = folder / MANIFEST
    path.write_text(path.read_text()[:-40])
    return [MANIFEST, "malformed JSON"]


def foreign_manifest(folder):
    (folder / MANIFEST).write_text('{"name": "something else"}')
    return [MANIFEST, "is not a manifest of token shards"]


def other_version(folder):
    manifest = read_manifest(folder)
    write_manifest(folder, {**manifest, "version": 99})
    return [MANIFEST, "format version 99, this program reads 2"]


def half_written(folder):
    (folder / MANIFEST).unlink()
    return [MANIFEST, "is missing", "not a complete folder of token shards"]


def no_folder(folder):
    shutil.rmtree(folder)
    return ["there is no such folder"]


def wrong_counts(folder):
    manifest = read_manifest(folder)
    manifest["splits"]["train"]["tokens"] += 1
    write_manifest(folder, manifest)
    return ["the counts of split 'train' do not match its shards"]


BOTH = [
    truncate,
    lengthen,
    remove,
    remove_index,
    pickled_index,
    edit_manifest,
    break_manifest,
    foreign_manifest,
    other_version,
    half_written,
    no_folder,
    wrong_counts,
]
CASES = [(d, v) for d in BOTH for v in ("checksum", "size")] + [(flip_tokens, "checksum")]


@pytest.mark.parametrize("damage, verify", CASES)
def test_damage_is_refused(written, tmp_path, damage, verify):
    folder = tmp_path / "copy"
    shutil.copytree(written[0], folder)
    words = damage(folder)
    with pytest.raises(DataError) as error:
        open_shards(folder, tokenizer=TOKENIZER, verify=verify)
    message = str(error.value)
    assert str(folder) in message and "\n" not in message
    for word in words:
        assert word in message


@VERIFY
def test_another_tokenizer_is_refused(written, tmp_path, verify):
    bpe = train_bpe(written[1], 290, tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="written by another tokenizer .kind 'bytes', not 'hf'"):
        open_shards(written[0], tokenizer=bpe, verify=verify)
    other = train_bpe([t[::-1] for t in written[1]], 290, tmp_path / "other.json")
    with ShardWriter(tmp_path / "t", bpe) as writer:
        writer.add("train", bpe.encode("a"), 1)
        writer.finish({}, 0.1)
    with pytest.raises(DataError, match="another tokenizer .fingerprint"):
        open_shards(tmp_path / "t", tokenizer=other, verify=verify)
    same = open_tokenizer(TokenizerConfig("hf", bpe.path))
    assert open_shards(tmp_path / "t", tokenizer=same, verify=verify).train.tokens == 3


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    """Shards with valid checksums that contain an invalid id."""
    with ShardWriter(tmp_path / "t", TOKENIZER) as writer:
        writer._token_bytes = np.ones(1000, np.int32)
        writer.add("train", np.array([3, 300, 5]), 3)
        writer.finish({}, 0.1)
    with pytest.raises(DataError, match="token 300, outside the tokenizer's vocabulary of 258"):
        open_shards(tmp_path / "t", tokenizer=TOKENIZER)


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    folder = tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        with ShardWriter(folder, TOKENIZER) as writer:
            writer.add("train", np.arange(9), 9)
            assert not folder.exists()
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_temporary_folders_of_killed_processes_are_removed(tmp_path):
    import socket
    import subprocess
    import sys

    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    mine = tmp_path / f"t.partial-{socket.gethostname()}-{dead}-abcd"
    theirs = tmp_path / f"t.partial-another-host-{dead}-abcd"
    for folder in (mine, theirs):
        folder.mkdir()
    with ShardWriter(tmp_path / "t", TOKENIZER) as writer:
        writer.add("train", np.arange(9), 9)
        writer.finish({}, 0.1)
    assert not mine.exists() and theirs.exists()


def test_an_existing_folder_is_not_overwritten(written):
    with pytest.raises(DataError, match="exists; remove it or name another"):
        ShardWriter(written[0], TOKENIZER)


def test_two_writers_of_the_same_folder_leave_one_folder(tmp_path):
    folder = tmp_path / "t"
    with ShardWriter(folder, TOKENIZER) as one, ShardWriter(folder, TOKENIZER) as two:
        for writer in (one, two):
            writer.add("train", np.arange(9), 9)
            writer.finish({}, 0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    assert open_shards(tmp_path / "t", tokenizer=TOKENIZER).train.documents == 1


def test_manifest_is_json_with_counts_and_checksums(written):
    manifest = json.loads((written[0] / MANIFEST).read_text())
    assert manifest["tokenizer"]["fingerprint"] == TOKENIZER.fingerprint
    assert manifest["source"]["files"][0]["sha256"]
    for split in manifest["splits"].values():
        for key in ("documents", "tokens", "bytes"):
            assert split[key] > 0
        assert all(len(s["bin_sha256"]) == 64 for s in split["shards"])

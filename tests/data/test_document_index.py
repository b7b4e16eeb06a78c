"""Indices of foreign stores: exact splits and batches, kept while the files are the same."""

import collections
import os
import tracemalloc

import numpy as np
import pytest
from data_helpers import (
    assert_batches_equal,
    assert_split_holds,
    assert_store_holds,
    draw_ids,
    draw_texts,
    make_pipeline,
    open_source,
    split_by_hand,
)

from hybridlm.data import open_pipeline
from hybridlm.data.settings import DataConfig
from hybridlm.data.sources import FlatTokens
from hybridlm.errors import DataError, WriteError

EOT = 257


def write_flat(path, documents):
    path.write_bytes(np.asarray([i for d in documents for i in d], "<u2").tobytes())
    return FlatTokens(str(path))


def draw_documents(rng, count, longest=40):
    return [[*d, EOT] for d in draw_ids(rng, count, longest)]


def open_flat(tmp_path, documents, **settings):
    source = write_flat(tmp_path / "a.bin", documents)
    settings = {"seq_len": 16, "batch_size": 4, "heldout_fraction": 0.3, **settings}
    return open_pipeline(DataConfig(sources={"a": source}, **settings), seed=1, workdir=tmp_path)


def sequences(pipeline):
    """The rows of one epoch, and of all that is held out, as lists of a row's arrays."""
    count = pipeline.counts()["sources"]["a"]["train"]["windows"]
    rows = [pipeline.batch(step) for step in range(-(-count // pipeline.batch_size))]
    train = [{k: b[k][i] for k in b} for b in rows for i in range(len(b["tokens"]))][:count]
    heldout = [
        {k: b[k][i] for k in b}
        for b in pipeline.heldout_batches(1, 10**9)
        for i in range(len(b["tokens"]))
    ]
    return train, heldout


@pytest.mark.parametrize("cross", [False, True])
def test_concat_batches_are_those_made_by_hand(cross, tmp_path):
    """Including documents of a single token, and sequences that begin inside a document."""
    rng, seq_len = np.random.default_rng(), 16
    documents = draw_documents(rng, 40) + [[EOT]] + draw_documents(rng, 3, 2) + [[7, EOT]]
    pipeline = open_flat(tmp_path, documents, cross_document_attention=cross)
    for found, own in zip(sequences(pipeline), split_by_hand(documents)):
        stream = [(i, n, k) for n, d in enumerate(own) for k, i in enumerate(d)]
        expected = []
        for start in range(0, len(stream) - 1, seq_len):
            row = [(0, 0, 0.0, 0, 0)] * seq_len
            for at in range(start, min(start + seq_len, len(stream) - 1)):
                (token, number, place), (target, after, _) = stream[at : at + 2]
                begin = start if cross else max(start, at - place)
                segment = 1 if cross else 1 + number - stream[start][1]
                weight = float(cross or number == after)
                row[at - start] = (token, target, weight, segment, at - begin)
            expected.append(tuple(row))
        keys = ("tokens", "targets", "loss_weights", "segment_ids", "positions")
        rows = [tuple(zip(*(row[key].tolist() for key in keys))) for row in found]
        assert collections.Counter(rows) == collections.Counter(expected)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_each_token_but_a_documents_first_is_a_target_once(packing, tmp_path):
    rng = np.random.default_rng()
    documents = [[EOT] if n % 9 == 0 else d for n, d in enumerate(draw_documents(rng, 60))]
    source = write_flat(tmp_path / "a.bin", documents)
    pipeline = open_pipeline(
        DataConfig(sources={"a": source}, seq_len=16, batch_size=4, packing=packing),
        seed=1,
        workdir=tmp_path,
    )
    train, heldout = split_by_hand(documents, 0.05)
    for found, own in zip(sequences(pipeline), (train, heldout)):
        pairs = collections.Counter(
            pair
            for row in found
            for pair, weight in zip(
                zip(row["tokens"].tolist(), row["targets"].tolist()), row["loss_weights"]
            )
            if weight
        )
        assert pairs == collections.Counter(pair for d in own for pair in zip(d, d[1:]))


def test_documents_of_one_token_alone_are_refused_where_they_make_no_batch(tmp_path):
    source = FlatTokens(str(tmp_path / "a.bin"), heldout_path=str(tmp_path / "b.bin"), eot_id=0)
    write_flat(tmp_path / "a.bin", [[0]] * 200)
    write_flat(tmp_path / "b.bin", [[1, 2, 0]])
    data = DataConfig(sources={"a": source}, seq_len=8, batch_size=1, packing="best_fit")
    with pytest.raises(DataError, match=r"data\.sources\.a: no training document has two tokens"):
        open_pipeline(data, seed=0, workdir=tmp_path)
    concat = DataConfig(sources={"a": source}, seq_len=8, batch_size=1)
    batch = open_pipeline(concat, seed=0, workdir=tmp_path).batch(0)
    assert not batch["loss_weights"].any() and batch["segment_ids"].max() == 8


def test_our_own_tokens_in_a_flat_file_give_the_same_batches_as_shards(tmp_path):
    """Tokens with BOS and EOS, written flat, are the stream that the shards hold."""
    raw = make_pipeline(tmp_path, {"a": draw_texts(np.random.default_rng(), 40)})
    for name, split in (("train", raw.train_splits["a"]), ("heldout", raw.heldout_splits["a"])):
        tokens, _ = split.read(0, split.tokens)
        (tmp_path / f"{name}.bin").write_bytes(tokens.astype("<u2").tobytes())
    source = FlatTokens(str(tmp_path / "train.bin"), heldout_path=str(tmp_path / "heldout.bin"))
    data = DataConfig(sources={"a": source}, seq_len=32, batch_size=6)
    flat = open_pipeline(data, seed=0, workdir=tmp_path)
    for step in (0, 5, 10**6):
        assert_batches_equal(raw.batch(step), flat.batch(step))
    ours, theirs = (p.counts()["sources"]["a"]["train"] for p in (raw, flat))
    assert ours["bytes"] == theirs["bytes"] == ours["token_bytes"] > 0
    assert ours["documents"] == theirs["documents"]


def test_copies_of_a_document_are_in_one_split(tmp_path):
    rng = np.random.default_rng()
    different = [[n % 250, n // 250, *d] for n, d in enumerate(draw_documents(rng, 80))]
    documents = [different[i] for i in rng.integers(0, 80, 400)]
    store = open_source(write_flat(tmp_path / "a.bin", documents), tmp_path)
    assert_store_holds(store, documents, rng)
    parts = []
    for split in (store.train, store.heldout):
        ends = split.document_offsets().tolist()
        parts.append({tuple(split.read(a, b)[0]) for a, b in zip(ends, ends[1:])})
    assert parts[0] and parts[1] and not parts[0] & parts[1]


def indices(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").iterdir())


def test_an_index_is_written_once_and_again_for_other_files(tmp_path):
    rng = np.random.default_rng()
    documents = draw_documents(rng, 40)
    source = write_flat(tmp_path / "a.bin", documents)
    first = open_source(source, tmp_path)
    (name,) = indices(tmp_path)
    stamp = (tmp_path / "cache" / name / "train.starts").stat().st_mtime_ns
    again = open_source(source, tmp_path, verify="size")
    assert (again.sha256, indices(tmp_path)) == (first.sha256, [name])
    assert (tmp_path / "cache" / name / "train.starts").stat().st_mtime_ns == stamp
    # Another time of change: another index of the same documents.
    os.utime(tmp_path / "a.bin", ns=(0, 0))
    touched = open_source(source, tmp_path)
    assert (touched.sha256, len(indices(tmp_path))) == (first.sha256, 2)
    assert open_source(source, tmp_path, heldout_fraction=0.4).sha256 != first.sha256
    # One other token, one other end.
    for changed in ([[documents[0][0] ^ 1, *documents[0][1:]], *documents[1:]], documents[:-1]):
        store = open_source(write_flat(tmp_path / "a.bin", changed), tmp_path)
        assert store.sha256 != first.sha256
        assert_store_holds(store, changed, rng)


def flip(path):
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name, damage, sentence",
    [
        ("train.starts", flip, r"train\.starts: is corrupt \(its SHA-256 differs\); remove"),
        ("heldout.offsets", flip, r"heldout\.offsets: is corrupt"),
        ("train.offsets", lambda p: p.write_bytes(p.read_bytes()[:-8]), "is missing or truncated"),
        ("train.starts", lambda p: p.unlink(), r"train\.starts: is missing or truncated"),
        ("index.json", lambda p: p.write_text("{"), "is not a whole index of these files; remove"),
        ("index.json", lambda p: p.unlink(), "is not a whole index of these files; remove"),
    ],
)
def test_a_damaged_index_is_refused(name, damage, sentence, tmp_path):
    source = write_flat(tmp_path / "a.bin", draw_documents(np.random.default_rng(), 40))
    open_source(source, tmp_path)
    damage(next(tmp_path.glob(f"cache/*/{name}")))
    with pytest.raises(DataError, match=f"^[^\n]*{sentence}[^\n]*$"):
        open_source(source, tmp_path)


def test_a_token_that_changes_after_the_check_is_found_when_it_is_read(tmp_path):
    """The files are checked once, and every id again where it becomes part of a batch."""
    documents = draw_documents(np.random.default_rng(), 40)
    pipeline = open_flat(tmp_path, documents)
    with open(tmp_path / "a.bin", "r+b") as file:
        file.write(b"\xff\xff" * sum(map(len, documents)))
    with pytest.raises(DataError, match=r"a\.bin: token [\d,]+ is 65535, outside"):
        pipeline.batch(0)


def test_other_tokens_at_the_same_time_of_change_are_refused(tmp_path):
    documents = draw_documents(np.random.default_rng(), 40)
    source = write_flat(tmp_path / "a.bin", documents)
    open_source(source, tmp_path)
    stat = (tmp_path / "a.bin").stat()
    changed = [[documents[0][0] ^ 1, *documents[0][1:]], *documents[1:]]
    write_flat(tmp_path / "a.bin", changed)
    os.utime(tmp_path / "a.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(
        DataError, match=r"^[^\n]*have other tokens than when the index was written"
    ):
        open_source(source, tmp_path, verify="size")


def test_errors_name_the_source(tmp_path):
    with pytest.raises(DataError, match=r"^data\.sources\.a: .*a\.bin: token 2 is 999, outside"):
        open_flat(tmp_path, [[1, EOT], [999, EOT]])


def test_memory_does_not_grow_with_the_files(tmp_path, monkeypatch):
    """Neither for the index nor for reading; numpy reports what it allocates to tracemalloc."""
    monkeypatch.setattr("hybridlm.data.document_index._BLOCK", 1 << 14)
    monkeypatch.setattr("hybridlm.data.document_index._PENDING", 1 << 10)
    monkeypatch.setattr("hybridlm.data.sources.flat._BLOCK", 1 << 14)
    block = np.random.default_rng().integers(0, 200, 1 << 15).astype("<u2")
    block[::17] = EOT
    peaks = []
    for blocks in (4, 16):  # 7,700 and 31,000 documents: indices of 0.12 and 0.5 MB
        path = tmp_path / f"{blocks}.bin"
        path.write_bytes(b"".join(block.tobytes() for _ in range(blocks)))
        tracemalloc.start()
        store = open_source(FlatTokens(str(path), add_bos=True), tmp_path)
        middle = store.train.tokens // 2
        tokens, _ = store.train.read(middle, middle + 2048)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(tokens) == 2048 and store.train.documents > 500 * blocks
    assert peaks[1] < 1.3 * peaks[0], peaks


@pytest.mark.parametrize("bos, eos", [(True, False), (False, True), (True, True)])
def test_added_specials_are_read_at_any_cut(bos, eos, tmp_path):
    rng = np.random.default_rng()
    documents = [[1, EOT], [EOT], [2, 3, EOT], *draw_documents(rng, 20, 3)]
    write_flat(tmp_path / "a.bin", documents)
    source = FlatTokens(str(tmp_path / "a.bin"), add_bos=bos, add_eos=eos)
    store = open_source(source, tmp_path)
    for split, own in zip((store.train, store.heldout), split_by_hand(documents)):
        assert_split_holds(split, [[256] * bos + d + [257] * eos for d in own], rng)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, full_disk):
    source = write_flat(tmp_path / "a.bin", draw_documents(np.random.default_rng(), 3000))
    with full_disk(5000), pytest.raises(WriteError, match=r"^\S*cache/s-\w+ cannot be written: "):
        open_source(source, tmp_path)
    assert not list(tmp_path.glob("cache/*"))

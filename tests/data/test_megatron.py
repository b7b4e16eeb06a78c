"""Megatron indexed datasets: documents of several sequences, several datasets, and damage."""

import numpy as np
import pytest
from data_helpers import (
    MEGATRON_CODES,
    assert_split_holds,
    assert_store_holds,
    draw_ids,
    open_source,
    write_megatron,
)

from hybridlm.data.sources import MegatronTokens
from hybridlm.errors import DataError


def draw_documents(rng, count):
    """Documents of 0 to 4 sequences, some of them empty."""
    pool = iter(draw_ids(rng, 4 * count, high=100))
    return [[next(pool) for _ in range(rng.integers(0, 5))] + [[]] for _ in range(count)]


def flat(documents):
    return [sum(sequences, []) for sequences in documents]


@pytest.mark.parametrize("dtype", MEGATRON_CODES)
def test_documents_are_those_of_the_writer(dtype, tmp_path):
    rng = np.random.default_rng()
    documents = draw_documents(rng, 50)
    write_megatron(tmp_path / "d" / "web_text_document", documents, dtype)
    source = MegatronTokens(str(tmp_path / "d" / "web_text_document"))
    assert_store_holds(open_source(source, tmp_path), flat(documents), rng)


def test_several_datasets_are_one_stream_in_the_order_of_their_names(tmp_path):
    rng = np.random.default_rng()
    parts = [draw_documents(rng, count) for count in (20, 1, 30)]
    for name, documents, dtype in zip(("a", "b", "c"), parts, ("<u2", "<i8", "<i4")):
        write_megatron(tmp_path / "d" / name, documents, dtype, modes=name == "c")
    expected = [d for documents in parts for d in flat(documents)]
    for path in ("d", "d/*", "d/?.idx"):
        store = open_source(MegatronTokens(str(tmp_path / path)), tmp_path)
        assert_store_holds(store, expected, rng)
    source = MegatronTokens(str(tmp_path / "d" / "a.bin"), heldout_path=str(tmp_path / "d" / "c"))
    store = open_source(source, tmp_path)
    assert_split_holds(store.train, list(filter(len, flat(parts[0]))), rng)
    assert_split_holds(store.heldout, list(filter(len, flat(parts[2]))), rng)


def test_many_documents_are_read_in_parts(tmp_path, monkeypatch):
    """The bounds of documents are exact where parts of the index meet."""
    monkeypatch.setattr("hybridlm.data.sources.megatron._DOCUMENTS", 7)
    monkeypatch.setattr("hybridlm.data.document_index._BLOCK", 64)  # fewer than some documents
    rng = np.random.default_rng()
    documents = draw_documents(rng, 40)
    write_megatron(tmp_path / "a", documents)
    store = open_source(MegatronTokens(str(tmp_path / "a")), tmp_path)
    assert_store_holds(store, flat(documents), rng)


def edited(suffix, at, data):
    """Overwrites bytes of a file; a negative place counts from its end."""

    def edit(prefix):
        path = prefix.with_name(prefix.name + suffix)
        content = bytearray(path.read_bytes())
        content[at : at + len(data)] = data
        path.write_bytes(content)

    return edit


def cut(suffix, size):
    def edit(prefix):
        path = prefix.with_name(prefix.name + suffix)
        path.write_bytes(path.read_bytes()[:size])

    return edit


def longer(suffix):
    return lambda p: p.with_name(p.name + suffix).open("ab").write(b"\0\0\0\0\0")


# The dataset below has 4 sequences in 3 documents: lengths begin at byte 34 of the index, pointers
# at 50, documents at 82.
BAD = {
    "no index": (
        lambda p: p.with_suffix(".idx").unlink(),
        r"there is no .*w\.idx; path is the pre",
    ),
    "no data": (lambda p: p.with_suffix(".bin").unlink(), r"w\.bin: is missing beside its .idx"),
    "magic": (edited(".idx", 0, b"TNTIDX"), r"w\.idx: is not the index of a Megatron dataset"),
    "version": (edited(".idx", 9, b"\2"), r"w\.idx: has version 2, this program reads 1"),
    "float": (edited(".idx", 17, b"\6"), r"w\.idx: its ids have type code 6; codes of integers"),
    "cut head": (cut(".idx", 20), r"w\.idx: is truncated \(20 bytes\)"),
    "cut index": (cut(".idx", 100), r"w\.idx: is truncated \(100 bytes; 4 sequences and 4 entries"),
    "long index": (longer(".idx"), r"w\.idx: is too long"),
    "cut data": (cut(".bin", 10), r"w\.bin: is truncated \(10 bytes; its index says 16\)"),
    "long data": (longer(".bin"), r"w\.bin: is too long"),
    "id": (edited(".bin", 4, b"\x02\x01"), r"w\.bin: token 2 is 258, outside the tokenizer's voc"),
    "first document": (edited(".idx", 82, b"\1"), "its documents do not cover its 4 sequences"),
    "last document": (edited(".idx", 106, b"\3"), "its documents do not cover its 4 sequences"),
    "order": (edited(".idx", 90, b"\4"), "its documents are out of order"),
    "length": (edited(".idx", 34, b"\3"), "its sequences do not follow one another"),
    "negative": (edited(".idx", 34, b"\xfe\xff\xff\xff"), "its documents are out of order"),
    "pointer": (edited(".idx", 58, b"\2"), "its sequences do not follow one another"),
    "no token": (lambda p: write_megatron(p, [[[]]]), "holds no token"),
    "no document": (lambda p: write_megatron(p, []), "holds no token"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_dataset_is_one_sentence(case, tmp_path):
    write_megatron(tmp_path / "w", [[[1, 2], [3]], [[4, 5]], [[6, 7, 8]]])
    damage, sentence = BAD[case]
    damage(tmp_path / "w")
    with pytest.raises(DataError, match=f"^[^\n]*{sentence}[^\n]*$"):
        open_source(MegatronTokens(str(tmp_path / "w")), tmp_path)
    assert not list(tmp_path.glob("cache/*"))


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(DataError, match="the folder holds no .idx file"):
        open_source(MegatronTokens(str(tmp_path)), tmp_path)

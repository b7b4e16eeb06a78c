"""Flat token files: the documents that the writers of nanoGPT and llm.c wrote, or one sentence."""

import json

import numpy as np
import pytest
from data_helpers import (
    assert_split_holds,
    assert_store_holds,
    draw_ids,
    open_source,
    split_by_hand,
)

from hybridlm.data.sources import FlatTokens
from hybridlm.data.tokenizers import TokenizerConfig
from hybridlm.errors import DataError

EOT = 257  # the EOS of the byte tokenizer


def write_llmc(path, ids, magic=20240520, version=1, dtype="<u2", count=None):
    """As llm.c's data_common.py lays a file out."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype).tobytes())


def write_files(folder, kind, stream, cuts):
    """The stream in files that are cut at `cuts`."""
    folder.mkdir()
    for number, ids in enumerate(np.split(np.asarray(stream), cuts)):
        path = folder / f"train_{number:06d}"
        if kind == "npy":
            np.save(path.with_suffix(".npy"), ids.astype(np.uint16))
        elif kind == "llm.c":
            write_llmc(path, ids)
        elif kind == "llm.c of Llama 3":
            write_llmc(path, ids, 20240801, 7, "<u4")
        else:
            path.with_suffix(".bin").write_bytes(ids.astype(kind).tobytes())


KINDS = ["<u2", "<u4", "llm.c", "llm.c of Llama 3", "npy"]


@pytest.mark.parametrize("eot", ["end", "begin"])
@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_those_of_the_writer(kind, eot, tmp_path):
    """A document may go on in the next file, and its id of end-of-text is its own token."""
    rng = np.random.default_rng()
    documents = draw_ids(rng, 60)
    documents = [[*d, EOT] if eot == "end" else [EOT, *d] for d in [*documents, []]]
    stream = [i for d in documents for i in d]
    write_files(tmp_path / "s", kind, stream, sorted(1 + rng.choice(len(stream) - 1, 3, False)))
    dtype = "uint32" if kind == "<u4" else "auto"
    store = open_source(FlatTokens(str(tmp_path / "s"), eot=eot, dtype=dtype), tmp_path)
    assert_store_holds(store, documents, rng)


def test_what_stands_before_the_first_and_after_the_last_end_of_text_is_a_document(tmp_path):
    rng = np.random.default_rng()
    documents = draw_ids(rng, 30)
    for eot in ("end", "begin"):
        stream = [i for d in documents for i in [*d, EOT]][:-1]
        ends = [[*d, EOT] for d in documents[:-1]] + [documents[-1]]
        begins = [documents[0]] + [[EOT, *d] for d in documents[1:]]
        (tmp_path / f"{eot}.bin").write_bytes(np.asarray(stream, "<u2").tobytes())
        store = open_source(FlatTokens(str(tmp_path / f"{eot}.bin"), eot=eot), tmp_path)
        assert_store_holds(store, ends if eot == "end" else begins, rng)


def test_another_id_may_stand_between_documents_and_specials_may_be_added(tmp_path):
    rng = np.random.default_rng()
    documents = [[*d, 10] for d in draw_ids(rng, 40, low=11)]
    (tmp_path / "a").write_bytes(np.asarray(sum(documents, []), "<u2").tobytes())
    source = FlatTokens(str(tmp_path / "a"), eot_id=10, add_bos=True, add_eos=True)
    store = open_source(source, tmp_path)
    for split, own in zip((store.train, store.heldout), split_by_hand(documents)):
        assert_split_holds(split, [[256, *d, 257] for d in own], rng)
    only_bos = open_source(FlatTokens(str(tmp_path / "a"), eot_id=10, add_bos=True), tmp_path)
    assert_split_holds(only_bos.train, [[256, *d] for d in split_by_hand(documents)[0]], rng)
    assert len({store.sha256, only_bos.sha256}) == 2


def test_files_of_their_own_may_be_held_out(tmp_path):
    """Then documents without an end-of-text are valid: nanoGPT's characters have none."""
    rng = np.random.default_rng()
    train, heldout = rng.integers(0, 200, 500), rng.integers(0, 200, 90)
    (tmp_path / "train.bin").write_bytes(train.astype("<u2").tobytes())
    (tmp_path / "val.bin").write_bytes(heldout.astype("<u2").tobytes())
    source = FlatTokens(str(tmp_path / "train.bin"), heldout_path=str(tmp_path / "val.bin"))
    store = open_source(source, tmp_path)
    assert_split_holds(store.train, [train.tolist()], rng)
    assert_split_holds(store.heldout, [heldout.tolist()], rng)
    assert store.heldout_fraction is None


def test_ids_of_a_large_vocabulary_are_uint32(tmp_path):
    vocab = {"<unk>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, 70_001)}}
    special = dict(id=1, content="</s>", special=True, normalized=False)
    special |= dict(single_word=False, lstrip=False, rstrip=False)
    content = dict(version="1.0", added_tokens=[special])
    content["model"] = dict(type="WordLevel", vocab=vocab, unk_token="<unk>")
    (tmp_path / "t.json").write_text(json.dumps(content))
    words = TokenizerConfig("hf", str(tmp_path / "t.json"))
    documents = [[5, 70_000, 7, 1], [9, 8, 1], [70_000, 1]]
    (tmp_path / "a").write_bytes(np.asarray(sum(documents, []), "<u4").tobytes())
    store = open_source(FlatTokens(str(tmp_path / "a")), tmp_path, tokenizer=words)
    assert_store_holds(store, documents, np.random.default_rng())


def raw(ids, dtype="<u2", more=b""):
    return lambda path: path.write_bytes(np.asarray(ids, dtype).tobytes() + more)


def llmc(*args, **kwargs):
    return lambda path: write_llmc(path, *args, **kwargs)


def npy(array):
    def write(path):
        with open(path, "wb") as file:
            np.save(file, array)

    return write


GOOD = [1, 2, EOT] * 40
BAD = {
    "odd bytes": (raw(GOOD, more=b"\1"), {}, "has 241 bytes, which are not 0 bytes of header and"),
    "id": (raw([*GOOD, 258, 1]), {}, "token 120 is 258, outside the tokenizer's vocabulary of 258"),
    "negative": (raw([*GOOD, -1], "<i4"), {"dtype": "int32"}, "token 120 is -1, outside"),
    "uint32": (raw(GOOD, "<u4"), {}, 'every second uint16 is 0, .*: set dtype="uint32"'),
    "uint16 as uint32": (raw(GOOD), {"dtype": "uint32"}, "is 131073, outside .*; set dtype, "),
    "count too large": (llmc(GOOD, count=121), {}, "header says 121 tokens, and it holds 120;"),
    "count too small": (llmc(GOOD, count=7), {}, "header says 7 tokens, and it holds 120;"),
    "version": (llmc(GOOD, version=3), {}, "its header is of version 3 .* has version 1 or 7"),
    "unknown magic": (llmc(GOOD, magic=20250401), {}, "unknown magic number 20250401: set header"),
    "type of the header": (llmc(GOOD), {"dtype": "uint32"}, "holds uint16, and dtype is 'uint32'"),
    "cut header": (
        lambda p: (llmc(GOOD)(p), p.write_bytes(p.read_bytes()[:600])),
        {},
        "600 bytes;",
    ),
    "shape": (
        npy(np.ones((3, 4), int)),
        {},
        r"not a .npy file of integers in one dimension .*\(3, 4\)",
    ),
    "float": (npy(np.ones(4)), {}, "not a .npy file of integers in one dimension .*<f8"),
    "cut .npy": (
        lambda p: p.write_bytes(b"\x93NUMPY\1\0v\0{'desc"),
        {},
        "not a .npy file of integers in one dim",
    ),
    "short .npy": (
        lambda p: (npy(np.arange(9))(p), p.write_bytes(p.read_bytes()[:-8])),
        {},
        "header says 9 tokens, and it holds 8",
    ),
    "no end": (raw([1, 2, 3]), {}, "no token is 257, .*: set eot_id .*, or heldout_path"),
    "eot_id": (raw(GOOD), {"eot_id": 300}, "eot_id is 300, outside the tokenizer's vocabulary"),
    "nothing": (raw([]), {}, "holds no token in its 0 bytes; copy it again, or remove it"),
    "only a header": (raw([7] * 512), {"header_bytes": 1024}, "holds no token in its 1,024 bytes"),
    "header of nothing": (llmc([]), {}, "holds no token"),
    "long header": (raw(GOOD), {"header_bytes": 999}, "are not 999 bytes of header and whole ids"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_one_sentence(case, tmp_path):
    write, settings, sentence = BAD[case]
    write(tmp_path / "a.bin")
    with pytest.raises(DataError, match=f"^[^\n]*{sentence}[^\n]*$") as error:
        open_source(FlatTokens(str(tmp_path / "a.bin"), **settings), tmp_path)
    assert "a.bin" in str(error.value) or "eot_id" in settings
    assert not list(tmp_path.glob("cache/*")), "a failed opening leaves something behind"


def test_a_header_of_any_other_kind_may_be_skipped(tmp_path):
    write_llmc(tmp_path / "a.bin", GOOD, magic=20250401)
    source = FlatTokens(str(tmp_path / "a.bin"), header_bytes=1024)
    assert_store_holds(open_source(source, tmp_path), [[1, 2, EOT]] * 40, np.random.default_rng())


def test_a_file_is_not_trained_on_and_held_out(tmp_path):
    for name in ("a.bin", "b.bin"):
        raw(GOOD)(tmp_path / name)
    source = FlatTokens(str(tmp_path / "*.bin"), heldout_path=str(tmp_path / "b.bin"))
    with pytest.raises(DataError, match=r"b\.bin: is in path and in heldout_path; take it out of"):
        open_source(source, tmp_path)


@pytest.mark.parametrize("dtype", ["auto", "uint16", "uint32"])
def test_a_file_without_a_byte_among_others_is_refused(dtype, tmp_path):
    """As every other truncation; a file whose own header says 0 tokens is whole."""
    for name, ids in (("a", GOOD), ("b", []), ("c", GOOD)):
        raw(ids, "<u4" if dtype == "uint32" else "<u2")(tmp_path / f"{name}.bin")
    source = FlatTokens(str(tmp_path / "*.bin"), dtype=dtype)
    with pytest.raises(DataError, match=r"/b\.bin: holds no token in its 0 bytes; copy it again"):
        open_source(source, tmp_path)
    if dtype == "auto":
        write_llmc(tmp_path / "b.bin", [])
        store = open_source(source, tmp_path)
        assert store.train.tokens + store.heldout.tokens == 2 * len(GOOD)

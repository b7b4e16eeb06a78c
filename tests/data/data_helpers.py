"""Small sources, shards and pipelines for the tests of hybridlm.data."""

import hashlib
import json
import struct

import numpy as np
from hypothesis import strategies as st

from hybridlm.data import open_pipeline, open_tokenizer, tokenize
from hybridlm.data.settings import DataConfig, TokenizerConfig
from hybridlm.data.sources import JsonLines
from hybridlm.data.store import Opening
from hybridlm.data.tokenization import Splitter

BYTES = TokenizerConfig()
WORDS = "the union of states shall be a hybrid and its windows are short – naïve 数 🙂".split()
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def draw_texts(rng, count, longest=60):
    """`count` documents of 1 to `longest` words."""
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(count)]


def write_jsonl(path, documents):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in documents), encoding="utf-8")
    return JsonLines(str(path))


def write_shards(folder, documents, heldout_fraction=0.3, **kwargs):
    """Byte shards of documents given as text; returns the folder."""
    source = write_jsonl(folder.parent / f"{folder.name}.jsonl", documents)
    return tokenize(source, open_tokenizer(BYTES), folder, heldout_fraction, **kwargs)


def make_pipeline(tmp_path, documents_by_name, *, weights=None, seed=0, **settings):
    """A pipeline over JSONL sources, cached below `tmp_path`."""
    sources = {}
    for name, documents in documents_by_name.items():
        source = write_jsonl(tmp_path / f"{name}.jsonl", documents)
        weight = (weights or {}).get(name, 1.0)
        sources[name] = JsonLines(source.path, weight=weight)
    settings = {"seq_len": 32, "batch_size": 6, "heldout_fraction": 0.3, **settings}
    return open_pipeline(DataConfig(sources=sources, **settings), seed=seed, workdir=tmp_path)


def assert_batches_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def draw_ids(rng, count, longest=40, low=0, high=200):
    """`count` different documents of 1 to `longest` token ids, as lists."""
    lengths = rng.integers(1, longest + 1, count)
    return [[int(i) for i in rng.integers(low, high, n)] for n in lengths]


def open_source(source, folder, *, heldout_fraction=0.3, verify="checksum", tokenizer=BYTES):
    """The opened source; its index lies below `folder`."""
    opened = open_tokenizer(tokenizer)
    return source.open(Opening("s", opened, folder / "cache", heldout_fraction, verify))


def split_by_hand(documents, heldout_fraction=0.3):
    """(train, heldout): the documents with tokens, by the rule of `Splitter`."""
    splitter, found = Splitter(heldout_fraction), {"train": [], "heldout": []}
    for ids in filter(len, documents):
        data = np.asarray(ids, "<i4").tobytes()
        found[splitter.split_of(hashlib.blake2b(data, digest_size=16).digest())].append(list(ids))
    return found["train"], found["heldout"]


def assert_split_holds(split, documents, rng):
    """The split's stream is the documents one after the other, however it is read."""
    stream = [i for ids in documents for i in ids]
    begins = [k == 0 for ids in documents for k in range(len(ids))]
    assert (split.documents, split.tokens) == (len(documents), len(stream))
    tokens, starts = split.read(0, split.tokens)
    assert (tokens.dtype, starts.dtype) == (np.int32, bool)
    assert (tokens.tolist(), starts.tolist()) == (stream, begins)
    for _ in range(30):
        a, b = sorted(rng.integers(0, split.tokens + 1, 2).tolist())
        tokens, starts = split.read(a, b)
        assert (tokens.tolist(), starts.tolist()) == (stream[a:b], begins[a:b])
    ends = np.cumsum([0, *map(len, documents)])
    assert split.document_offsets().tolist() == ends.tolist()


def assert_store_holds(store, documents, rng, heldout_fraction=0.3):
    """The splits of an opened store are the documents, split by hand."""
    train, heldout = split_by_hand(documents, heldout_fraction)
    assert_split_holds(store.train, train, rng)
    assert_split_holds(store.heldout, heldout, rng)


MEGATRON_CODES = {"u1": 1, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}


def write_megatron(prefix, documents, dtype="<u2", modes=False):
    """Lays out a dataset as Megatron-LM does; each document is a list of sequences."""
    sequences = [s for d in documents for s in d]
    data = [np.asarray(s, dtype).tobytes() for s in sequences]
    index = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, MEGATRON_CODES[dtype])
    index += struct.pack("<QQ", len(sequences), len(documents) + 1)
    index += np.asarray([len(s) for s in sequences], "<i4").tobytes()
    index += np.cumsum([0, *map(len, data)])[:-1].astype("<i8").tobytes()
    index += np.cumsum([0, *map(len, documents)]).astype("<i8").tobytes()
    index += bytes(len(sequences)) if modes else b""
    prefix.parent.mkdir(exist_ok=True)
    prefix.with_name(f"{prefix.name}.idx").write_bytes(index)
    prefix.with_name(f"{prefix.name}.bin").write_bytes(b"".join(data))

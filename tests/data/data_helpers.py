"""Small sources, shards and pipelines for the tests of hybridlm.data."""

import json

import numpy as np
from hypothesis import strategies as st

from hybridlm.data import open_pipeline, open_tokenizer, tokenize
from hybridlm.data.settings import DataConfig, TokenizerConfig
from hybridlm.data.sources import JsonLines

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

"""The pipeline: batch n depends only on (seed, n); tokens once per epoch; exact shares."""

import collections
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from data_helpers import BYTES, assert_batches_equal, draw_texts, make_pipeline, write_shards

from hybridlm.data import open_pipeline, open_tokenizer
from hybridlm.data.settings import DataConfig
from hybridlm.data.sources import TokenShards
from hybridlm.errors import DataError

PACKINGS = pytest.mark.parametrize("packing", ["concat", "best_fit"])
ROOT = pathlib.Path(__file__).parents[2]


def two_sources(tmp_path, **settings):
    rng = np.random.default_rng(5)
    documents = {"a": draw_texts(rng, 30), "b": draw_texts(rng, 20)}
    return make_pipeline(tmp_path, documents, weights={"a": 0.7, "b": 0.3}, **settings)


@PACKINGS
def test_rows_are_slices_of_the_same_batch(packing, tmp_path):
    pipeline = two_sources(tmp_path, packing=packing)
    for step in (0, 7, 10**9):
        whole = pipeline.batch(step)
        assert {v.shape for v in whole.values()} == {(6, 32)}
        for rows in (slice(0, 3), slice(3, 6), slice(1, 6, 2), slice(6, 6), [5, 0], range(2, 4)):
            assert_batches_equal(pipeline.batch(step, rows), {k: v[rows] for k, v in whole.items()})


@PACKINGS
def test_iterate_yields_the_batches_from_any_step(packing, tmp_path):
    pipeline = two_sources(tmp_path, packing=packing)
    for start, rows, prefetch in ((0, slice(None), 1), (3, [2, 3], 4), (10**8, slice(1, 5), 16)):
        pipeline._prefetch = prefetch
        iterator = pipeline.iterate(start, rows)
        for step in range(start, start + 12):
            assert_batches_equal(next(iterator), pipeline.batch(step, rows))
        iterator.close()


def test_batches_depend_on_the_seed_and_not_on_the_order_of_sources(tmp_path):
    one, again = two_sources(tmp_path, seed=3), two_sources(tmp_path, seed=3)
    other = two_sources(tmp_path, seed=4)
    assert_batches_equal(one.batch(5), again.batch(5))
    assert (one.batch(5)["tokens"] != other.batch(5)["tokens"]).any()
    rng = np.random.default_rng(5)
    documents = {"a": draw_texts(rng, 30), "b": draw_texts(rng, 20)}
    swapped = make_pipeline(
        tmp_path, dict(reversed(documents.items())), weights={"a": 0.7, "b": 0.3}, seed=3
    )
    assert_batches_equal(one.batch(5), swapped.batch(5))


def test_another_process_produces_the_same_batch(tmp_path):
    pipeline = two_sources(tmp_path, seed=11)
    code = (
        "import sys, pathlib, hashlib; sys.path.insert(0, sys.argv[2])\n"
        "from test_pipeline import two_sources\n"
        "batch = two_sources(pathlib.Path(sys.argv[1]), seed=11).batch(123)\n"
        "print(hashlib.sha256(b''.join(v.tobytes() for v in batch.values())).hexdigest())\n"
        "from jax._src import xla_bridge; assert not xla_bridge._backends, 'a device was touched'\n"
    )
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), here], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    import hashlib

    ours = b"".join(v.tobytes() for v in pipeline.batch(123).values())
    assert done.stdout.strip() == hashlib.sha256(ours).hexdigest()


@PACKINGS
def test_each_training_target_occurs_once_per_epoch(packing, tmp_path):
    rng = np.random.default_rng()
    pipeline = make_pipeline(tmp_path, {"a": draw_texts(rng, 25)}, packing=packing, batch_size=1)
    sequences = pipeline.counts()["sources"]["a"]["train"]["windows"]
    split = pipeline.train_splits["a"]
    tokens, begins = split.read(0, split.tokens)
    expected = collections.Counter(
        zip(tokens[:-1][~begins[1:]].tolist(), tokens[1:][~begins[1:]].tolist())
    )
    orders = []
    for epoch in range(3):
        counted, order = collections.Counter(), []
        for step in range(epoch * sequences, (epoch + 1) * sequences):
            batch = pipeline.batch(step)
            real = batch["loss_weights"] > 0
            counted.update(zip(batch["tokens"][real].tolist(), batch["targets"][real].tolist()))
            order.append(batch["tokens"].tobytes())
        assert counted == expected
        orders.append(order)
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1] != orders[2], "epochs have the same order"
    assert pipeline.tokens_per_epoch == split.tokens


def test_mixture_shares_are_exact_at_any_step(tmp_path):
    documents = {name: [name * length for length in range(101, 110)] for name in "abc"}
    pipeline = make_pipeline(
        tmp_path, documents, weights={"a": 0.5, "b": 0.3, "c": 0.2}, batch_size=10
    )
    for step in (0, 1, 5, 10**7):
        tokens = pipeline.batch(step)["tokens"]
        rows = [chr(row[(row > 0) & (row < 256)][0]) for row in tokens]
        assert collections.Counter(rows) == {"a": 5, "b": 3, "c": 2}


@PACKINGS
def test_held_out_batches_are_fixed_spread_and_padded(packing, tmp_path):
    pipeline = two_sources(tmp_path, packing=packing)
    other = two_sources(tmp_path, packing=packing, seed=9)
    for one, two in zip(pipeline.heldout_batches(4, 10), other.heldout_batches(4, 10), strict=True):
        assert_batches_equal(one, two)
    batches = list(pipeline.heldout_batches(4, 10))
    assert [b["tokens"].shape for b in batches] == [(4, 32)] * 3
    assert batches[-1]["segment_ids"][:2].any(axis=1).all()
    for value in batches[-1].values():
        assert not value[2:].any()
    few, many = pipeline.heldout_sequences(5), pipeline.heldout_sequences(12)
    assert many[:5] == few
    # A count above the total selects each held-out sequence once.
    counts = pipeline.counts()["sources"]
    everything = pipeline.heldout_sequences(10**9)
    assert len(everything) == len(set(everything))
    assert len(everything) == sum(c["heldout"]["windows"] for c in counts.values())
    weights = sum(b["loss_weights"].sum() for b in pipeline.heldout_batches(8, 10**9))
    assert weights == sum(
        c["heldout"]["tokens"] - c["heldout"]["documents"] for c in counts.values()
    )


def test_held_out_sequences_contain_no_training_text(tmp_path):
    documents = {"a": [f"<{i:04d}>" * 20 for i in range(60)]}
    pipeline = make_pipeline(tmp_path, documents, batch_size=16)

    def numbers(batches):
        text = "".join(pipeline.tokenizer.decode(r) for b in batches for r in b["tokens"])
        return set(re.findall(r"<(\d{4})>", text))

    train = numbers(pipeline.batch(s) for s in range(60))
    heldout = numbers(pipeline.heldout_batches(8, 10**9))
    assert train and heldout and not train & heldout
    assert len(train | heldout) == 60


def test_cross_document_attention_is_a_switch(tmp_path):
    documents = {"a": draw_texts(np.random.default_rng(), 40, longest=4)}
    assert make_pipeline(tmp_path, documents).batch(0)["segment_ids"].max() > 1
    batch = make_pipeline(tmp_path, documents, cross_document_attention=True).batch(0)
    assert batch["segment_ids"].max() == 1
    assert (batch["loss_weights"] == batch["segment_ids"]).all()


def test_counts_are_json_and_add_up(tmp_path):
    import json

    pipeline = two_sources(tmp_path)
    counts = pipeline.counts(steps=100)
    json.dumps(counts)
    for source in counts["sources"].values():
        train, heldout = source["train"], source["heldout"]
        assert train["tokens"] == train["bytes"] + 2 * train["documents"]
        assert heldout["documents"] > 0
        assert source["epochs"] == pytest.approx(600 * source["weight"] / train["windows"])
    assert counts["tokens_per_epoch"] == sum(
        s["train"]["tokens"] for s in counts["sources"].values()
    )


def cached(tmp_path):
    return sorted(p.name for p in (tmp_path / "tokens").iterdir())


def test_tokens_are_cached_and_not_reused_for_other_settings(tmp_path):
    rng = np.random.default_rng()
    documents = {"a": draw_texts(rng, 30)}
    make_pipeline(tmp_path, documents)
    first = cached(tmp_path)
    stamp = (tmp_path / "tokens" / first[0] / "manifest.json").stat().st_mtime_ns
    make_pipeline(tmp_path, documents, weights={"a": 3.0}, seed=4, seq_len=16)
    assert cached(tmp_path) == first
    assert (tmp_path / "tokens" / first[0] / "manifest.json").stat().st_mtime_ns == stamp
    make_pipeline(tmp_path, documents, heldout_fraction=0.4)
    make_pipeline(tmp_path, {"a": [*documents["a"], "one more"]})
    assert len(cached(tmp_path)) == 3
    # A folder of other text under this name is refused.
    other = next(n for n in cached(tmp_path) if n not in first)
    folder = tmp_path / "tokens" / first[0]
    folder.rename(tmp_path / "away")
    (tmp_path / "tokens" / other).rename(folder)
    with pytest.raises(DataError, match=r"data\.sources\.a: .*tokens of other settings"):
        make_pipeline(tmp_path, documents)


def test_a_damaged_cache_is_refused(tmp_path):
    documents = {"a": draw_texts(np.random.default_rng(), 30)}
    make_pipeline(tmp_path, documents)
    folder = tmp_path / "tokens" / cached(tmp_path)[0]
    path = folder / "train-00000.bin"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(DataError, match=r"data\.sources\.a: .*train-00000.bin: the shard is corr"):
        make_pipeline(tmp_path, documents)
    path.write_bytes(data)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="manifest.json is missing"):
        make_pipeline(tmp_path, documents)


def test_existing_shards_give_the_same_batches(tmp_path):
    documents = draw_texts(np.random.default_rng(), 30)
    raw = make_pipeline(tmp_path, {"a": documents})
    folder = write_shards(tmp_path / "written" / "a", documents, 0.3)
    sources = {"a": TokenShards(str(folder))}
    data = DataConfig(sources=sources, seq_len=32, batch_size=6)
    written = open_pipeline(data, seed=0, workdir=tmp_path)
    assert_batches_equal(raw.batch(3), written.batch(3))
    assert written.counts()["sources"]["a"]["heldout_fraction"] == 0.3
    assert written.tokenizer.fingerprint == open_tokenizer(BYTES).fingerprint


def test_a_single_document_cannot_be_held_out(tmp_path):
    with pytest.raises(DataError, match="a has a single document .* so none can be held out"):
        make_pipeline(tmp_path, {"a": ["one long text " * 50] * 2})
    make_pipeline(tmp_path, {"a": ["one long text " * 50], "b": ["x y " * 9, "z"]})


@PACKINGS
def test_a_sequence_longer_than_the_text_is_refused(packing, tmp_path):
    documents = {"a": draw_texts(np.random.default_rng(), 30), "b": ["short", "texts"]}
    with pytest.raises(DataError, match=r"data\.sources\.b: .* has 7 training tokens, too few for"):
        make_pipeline(tmp_path, documents, packing=packing)


def test_the_package_executes_nothing_it_reads():
    """The package uses no pickle, numpy loader or eval, and imports no model or trainer."""
    for path in (ROOT / "hybridlm" / "data").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for word in ("pickle", "np.load", "marshal", "eval(", "exec(", "torch"):
            assert word not in source, f"{path.name}: {word}"
        assert not re.search(r"hybridlm\.(models|train)|import jax", source), path.name


def test_importing_needs_no_optional_library():
    # array_record is not blocked, because grain itself imports it.
    blocked = ["pyarrow", "tokenizers", "sentencepiece", "zstandard"]
    code = f"import sys\nfor m in {blocked}: sys.modules[m] = None\nimport hybridlm.data"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

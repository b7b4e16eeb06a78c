"""What a run reads of each source is counted exactly, and limits on repetition are kept."""

import collections
import re
from fractions import Fraction

import pytest
from data_helpers import make_pipeline, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data import open_pipeline
from hybridlm.data.epochs import check_epochs, seen
from hybridlm.data.mixture import integer_weights, select, taken
from hybridlm.data.settings import DataConfig
from hybridlm.data.sources import JsonLines
from hybridlm.errors import ConfigError

weights = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(weights=weights, count=st.integers(0, 400))
def test_taken_counts_what_select_selects(weights, count):
    counted = collections.Counter(select(i, weights)[0] for i in range(count))
    assert taken(count, weights) == tuple(counted[i] for i in range(len(weights)))


def test_seen_is_what_the_batches_hold(tmp_path):
    """Rows are counted by the letter of their source."""
    documents = {name: [name * length for length in range(101, 110)] for name in "abc"}
    given_weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    pipeline = make_pipeline(tmp_path, documents, weights=given_weights, batch_size=7)
    sources = {n: JsonLines("x", weight=w) for n, w in given_weights.items()}
    data = DataConfig(sources=sources, seq_len=32, batch_size=7)
    counts = pipeline.counts()["sources"]
    for steps in (0, 1, 9, 40):
        rows = [row for step in range(steps) for row in pipeline.batch(step)["tokens"]]
        read = collections.Counter(chr(row[(row > 0) & (row < 256)][0]) for row in rows)
        for row in seen(data, counts, steps):
            train = counts[row.name]["train"]
            assert row.sequences == read[row.name]
            assert row.epochs == pytest.approx(read[row.name] / train["windows"])
            assert row.tokens == round(train["tokens"] * read[row.name] / train["windows"])
            assert row.asked == pytest.approx(given_weights[row.name])
            assert row.share == pytest.approx(read[row.name] / max(len(rows), 1))
    # After whole epochs, each document was read once an epoch.
    (one,) = seen(
        DataConfig(sources={"a": sources["a"]}, seq_len=32, batch_size=1),
        {"a": counts["a"]},
        3 * counts["a"]["train"]["windows"],
    )
    train = counts["a"]["train"]
    assert (one.epochs, one.tokens) == (3, 3 * train["tokens"])
    assert one.documents == 3 * train["documents"]
    assert one.text().startswith(f"3 epochs: {one.tokens:,} tokens of {one.documents:g} documents")
    assert one.text().endswith(f" in {one.sequences:,} sequences")
    half = one._replace(asked=0.5, share=0.25)
    assert half.text().endswith(" sequences, 25.00% of all sequences (50.00% asked)")


def test_nothing_is_said_of_other_sources():
    data = DataConfig(sources={"a": JsonLines("x")}, seq_len=8, batch_size=1)
    assert seen(data, {"b": {"train": {"windows": 3}}}, 5) == []
    assert seen(data, {"a": {"train": {}}}, 5) == []  # the record of an older version


source = st.tuples(st.integers(1, 20), st.integers(1, 400), st.none() | st.floats(0.3, 9))


@settings(max_examples=150, deadline=None)
@given(drawn=st.lists(source, min_size=1, max_size=4), steps=st.integers(1, 300))
def test_limits_are_kept_and_the_advice_is_right(drawn, steps):
    batch_size = 4
    sources = {
        f"s{i}": JsonLines("x", weight=float(w), max_epochs=m) for i, (w, _, m) in enumerate(drawn)
    }
    windows = {f"s{i}": n for i, (_, n, _) in enumerate(drawn)}
    mixture = integer_weights([float(w) for w, _, _ in drawn])

    def over(steps):
        return {
            name
            for name, count in zip(sources, taken(steps * batch_size, mixture))
            if (limit := sources[name].max_epochs) and count > Fraction(str(limit)) * windows[name]
        }

    if not over(steps):
        check_epochs(sources, windows, steps, batch_size)
        return
    with pytest.raises(ConfigError, match="^[^\n]*$") as error:
        check_epochs(sources, windows, steps, batch_size)
    message = str(error.value)
    allowed = int(re.search(r"take at most ([\d,]+) steps", message)[1].replace(",", ""))
    assert not over(allowed) and over(allowed + 1)
    named = set(re.findall(r"(s\d) [\d.e+]+ times \(max_epochs", message))
    assert named == over(steps)
    if advice := re.search(r"these weights for all [\d,]+: (.*)$", message):
        shares = dict(part.split(" ") for part in advice[1].split(", "))
        changed = {
            n: JsonLines("x", weight=float(shares[n]), max_epochs=s.max_epochs)
            for n, s in sources.items()
        }
        check_epochs(changed, windows, steps, batch_size)


def test_weights_that_fit_are_proposed():
    """A source over its limit gets its limit; the others divide the rest in their ratio."""
    sources = {
        "web": JsonLines("x", weight=0.5),
        "books": JsonLines("x", weight=0.25, max_epochs=2),
        "code": JsonLines("x", weight=0.25),
    }
    with pytest.raises(ConfigError) as error:
        check_epochs(sources, {"web": 10**6, "books": 1000, "code": 10**6}, 1000, 16)
    assert str(error.value) == (
        "data.sources: 1,000 steps read books 4 times (max_epochs 2): take at most 500 steps with"
        " these weights, or these weights for all 1,000: books 0.1248, code 0.2917, web 0.5835"
    )
    few = {"books": JsonLines("x", max_epochs=2)}
    with pytest.raises(ConfigError, match="no weights allow more than 125, so add text or raise"):
        check_epochs(few, {"books": 1000}, 1000, 16)


def test_a_limit_is_positive():
    with pytest.raises(ConfigError, match="a.max_epochs must be positive, or None for no limit"):
        sources = {"a": dict(kind="jsonl", path="x", max_epochs=0)}
        DataConfig(sources=sources, seq_len=8, batch_size=1)


def test_a_pipeline_checks_its_own_sources(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ["text " * 90] * 9 + ["other"])
    source = JsonLines(str(path), max_epochs=1.5)
    data = DataConfig(sources={"a": source}, seq_len=32, batch_size=2)
    pipeline = open_pipeline(data, seed=0, workdir=tmp_path)
    windows = pipeline.counts()["sources"]["a"]["train"]["windows"]
    pipeline.check_epochs(windows * 3 // 4)
    with pytest.raises(ConfigError, match=r"data\.sources: .* read a 1\.5\d* times"):
        pipeline.check_epochs(windows * 3 // 4 + 1)

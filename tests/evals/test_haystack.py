"""Haystacks are held-out text, and needles are inserted at their depths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.errors import DataError
from hybridlm.evals import haystack
from hybridlm.evals.sample import token_spans


def test_a_text_haystack_is_a_held_out_address():
    held = [a for a in haystack.addresses() if a.heldout]
    assert 5 <= len(held) <= 20 and len(haystack.addresses()) == 233
    for seed in range(5):
        source = haystack.TextHaystack(np.random.default_rng(seed))
        text = " ".join(source.sentences(300))
        assert len(text.split(" ")) == 300
        assert any(a.text.startswith(text) for a in held)
        assert " ".join(source.sentences(200)) == " ".join(text.split(" ")[:200])


def test_a_text_haystack_repeats_past_its_end():
    source = haystack.TextHaystack(np.random.default_rng(0))
    total = len(source._words)
    assert sum(len(s.split(" ")) for s in source.sentences(2 * total + 7)) == 2 * total + 7


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(0, 40), needles=st.integers(1, 5))
def test_insertion_keeps_the_text_and_finds_the_depth(seed, count, needles):
    """Without the needles the text is the haystack; each span contains its needle, at its depth."""
    rng = np.random.default_rng(seed)
    sentences = ["x" * int(rng.integers(1, 30)) + "." for _ in range(count)]
    put = [f"<needle {i}>" for i in range(needles)]
    depths = rng.uniform(0, 100, needles).tolist()
    filled = haystack.insert(sentences, put, depths)
    for (first, end), wanted in zip(filled.spans, put):
        assert filled.text[first:end] == wanted
    assert [s for s in filled.text.replace("> ", ">\n").split() if "." in s] == sentences
    order = [n for _, n in sorted(zip(filled.spans, range(needles)))]
    assert order == sorted(range(needles), key=lambda i: depths[i])
    hay = sum(len(s) + 1 for s in sentences)
    longest = max((len(s) + 1 for s in sentences), default=0)
    for i, depth in enumerate(depths):
        before = filled.text[: filled.spans[i][0]]
        for other in put:
            before = before.replace(other + " ", "")
        assert abs(len(before) - depth / 100 * hay) <= longest / 2 + 1e-6


def test_depths_0_and_100_are_the_ends_of_the_text():
    filled = haystack.insert(["A b.", "C d."], ["first", "last"], [0, 100])
    assert filled.text == "first A b. C d. last"


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_token_spans_are_the_shortest_that_contain_the_characters(tokenizers, name):
    tokenizer = tokenizers[name]
    text = "The people’s magic number – for us – is 1234567, not 7654321. Naïve."
    ids = tokenizer.encode(text)
    for wanted in ("magic number", "1234567", "Naïve."):
        first = text.index(wanted)
        ((a, b),) = token_spans(tokenizer, ids, text, [(first, first + len(wanted))])
        assert wanted in tokenizer.decode(ids[a - 1 : b - 1])
        assert wanted not in tokenizer.decode(ids[a : b - 1])
        assert wanted not in tokenizer.decode(ids[a - 1 : b - 2])


class Lower:
    """A tokenizer that lower-cases text and removes double spaces."""

    def __init__(self, inner):
        self._inner = inner

    def encode(self, text):
        return self._inner.encode(text.replace("  ", " ").lower())

    def decode(self, ids):
        return self._inner.decode(ids)


def test_token_spans_of_a_tokenizer_that_rewrites_text(tokenizers):
    tokenizer = Lower(tokenizers["bytes"])
    text = "two  spaces, then 123 and 123"
    ids = tokenizer.encode(text)
    first = text.rindex("123")
    ((a, b),) = token_spans(tokenizer, ids, text, [(first, first + 3)])
    assert tokenizer.decode(ids[a - 1 : b - 1]) == "123" and b - 1 == len(ids)
    with pytest.raises(DataError, match="rewrites 'Key'"):
        token_spans(tokenizer, tokenizer.encode("A Key"), "A Key", [(2, 5)])


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(DataError, match="gone.gz is missing"):
        haystack.addresses(tmp_path / "gone.gz")

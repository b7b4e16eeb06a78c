"""Haystacks, and the insertion of needles at given depths.

There are three kinds, as in RULER (arXiv 2404.06654): running text, repeated meaningless sentences
("noise"), and needles with other keys (`ruler_niah.NeedleHaystack`). RULER's text is a collection
of essays; ours is those bundled State of the Union addresses that are held out from training by
default. The noise sentences are our own.
"""

import functools
import gzip
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hybridlm.data.tokenization import Splitter, text_digest
from hybridlm.errors import DataError
from hybridlm.evals.sample import Span
from hybridlm.settings.json_text import parse_json

CORPUS = pathlib.Path(__file__).parents[2] / "data" / "corpora" / "state_of_the_union.jsonl.gz"
HELDOUT_FRACTION = 0.05  # DataConfig's default
NOISE = (
    "The road is long. The hills are far away. A cart goes by. Rain falls, and the rain stops.",
    "Nothing else happens.",
)


class Address(NamedTuple):
    """A document of the bundled corpus; `heldout`: held out at the default fraction."""

    year: int
    author: str
    text: str
    heldout: bool


@functools.cache
def addresses(path: pathlib.Path = CORPUS) -> tuple[Address, ...]:
    """The bundled corpus, in order; each run of white space becomes one space.

    Raises:
      DataError: if the file is missing (the checkout has it, a wheel does not).
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: the haystacks are made from the bundled corpus")
    found, splitter = [], Splitter(HELDOUT_FRACTION)
    with gzip.open(path, "rb") as lines:
        for line in lines:
            entry = parse_json(line)
            split = splitter.split_of(text_digest(entry["text"].encode()))
            text = " ".join(entry["text"].split())
            found.append(Address(int(entry["year"]), entry["author"], text, split == "heldout"))
    return tuple(found)


@functools.cache
def _heldout_words() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The words of all held-out addresses, and the index of each address's first word."""
    words: list[str] = []
    starts = []
    for address in addresses():
        if address.heldout:
            starts.append(len(words))
            words += address.text.split(" ")
    return tuple(words), tuple(starts)


class TextHaystack:
    """Held-out addresses, starting at a random one and repeating at the end; a unit is a word."""

    def __init__(self, rng: np.random.Generator):
        words, starts = _heldout_words()
        first = int(rng.choice(starts))
        self._words = words[first:] + words[:first]

    def sentences(self, units: int) -> list[str]:
        """The first `units` words as sentences; the last sentence may be incomplete."""
        repeats, rest = divmod(units, len(self._words))
        return split_sentences(" ".join(self._words * repeats + self._words[:rest]))


class NoiseHaystack:
    """The noise sentences, repeated; a unit is a sentence."""

    def __init__(self):
        self._noise = split_sentences(" ".join(NOISE))

    def sentences(self, units: int) -> list[str]:
        """The first `units` sentences."""
        return [self._noise[i % len(self._noise)] for i in range(units)]


def split_sentences(text: str) -> list[str]:
    """Splits text after ., ! and ? that end a word; joining with spaces gives the text back."""
    return [s for s in re.split(r"(?<=[.!?]) ", text) if s]


class Filled(NamedTuple):
    """A haystack with needles; `spans` are the needles' character spans, in the order given."""

    text: str
    spans: tuple[Span, ...]


def insert(sentences: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> Filled:
    """Inserts needles between sentences.

    Args:
      depths: in per cent; a needle at depth d goes to the sentence boundary that is nearest to d%
        of the haystack's characters. 0 is before all sentences, 100 after all.
    """
    ends = np.concatenate([[0], np.cumsum([len(s) + 1 for s in sentences])])
    breaks = [int(np.argmin(np.abs(ends - ends[-1] * d / 100))) for d in depths]
    order = sorted(range(len(needles)), key=lambda i: (depths[i], i))
    pieces: list[str] = []
    spans: dict[int, Span] = {}
    position, done = 0, 0

    def add(piece: str) -> None:
        nonlocal position
        pieces.append(piece)
        position += len(piece) + 1

    for i in order:
        for sentence in sentences[done : breaks[i]]:
            add(sentence)
        done = max(done, breaks[i])
        spans[i] = (position, position + len(needles[i]))
        add(needles[i])
    for sentence in sentences[done:]:
        add(sentence)
    return Filled(" ".join(pieces), tuple(spans[i] for i in range(len(needles))))

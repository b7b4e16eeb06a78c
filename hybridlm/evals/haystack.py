"""Haystacks: held-out addresses, noise, or other needles; and needles put in at given depths.

Three kinds, as in RULER (arXiv 2404.06654): running text, repeated sentences that say nothing
("noise"), and needles of other keys. RULER's text is a collection of essays; ours is the bundled
State of the Union addresses that are held out from training by default. The noise sentences are
our own.
"""

import functools
import gzip
import json
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hybridlm.data.tokenization import Splitter, text_digest
from hybridlm.errors import DataError
from hybridlm.evals.sample import Span

CORPUS = pathlib.Path(__file__).parents[2] / "data" / "corpora" / "state_of_the_union.jsonl.gz"
HELDOUT_FRACTION = 0.05  # DataConfig's default
NOISE = (
    "The road is long. The hills are far away. A cart goes by. Rain falls, and the rain stops.",
    "Nothing else happens.",
)


class Address(NamedTuple):
    """A document of the bundled corpus; `heldout`: not trained on at the default fraction."""

    year: int
    author: str
    text: str
    heldout: bool


@functools.cache
def addresses(path: pathlib.Path = CORPUS) -> tuple[Address, ...]:
    """The bundled corpus, in order; runs of white space in the text are one space.

    Raises:
      DataError: where the file is missing (it lies in the checkout, not in a wheel).
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: the haystacks are made from the bundled corpus")
    found, splitter = [], Splitter(HELDOUT_FRACTION)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            split = splitter.split_of(text_digest(entry["text"].encode()))
            text = " ".join(entry["text"].split())
            found.append(Address(int(entry["year"]), entry["author"], text, split == "heldout"))
    return tuple(found)


@functools.cache
def _heldout_words() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The words of all held-out addresses, end to end, and where each address begins."""
    words: list[str] = []
    starts = []
    for address in addresses():
        if address.heldout:
            starts.append(len(words))
            words += address.text.split(" ")
    return tuple(words), tuple(starts)


class TextHaystack:
    """Held-out addresses from a drawn one on, without end; a unit is a word."""

    def __init__(self, rng: np.random.Generator):
        words, starts = _heldout_words()
        first = int(rng.choice(starts))
        self._words = words[first:] + words[:first]

    def sentences(self, units: int) -> list[str]:
        """So many words, cut at the ends of sentences; the last may be unfinished."""
        repeats, rest = divmod(units, len(self._words))
        return split_sentences(" ".join(self._words * repeats + self._words[:rest]))


class NoiseHaystack:
    """The noise sentences over and over; a unit is a sentence."""

    def __init__(self):
        self._noise = split_sentences(" ".join(NOISE))

    def sentences(self, units: int) -> list[str]:
        """So many sentences."""
        return [self._noise[i % len(self._noise)] for i in range(units)]


def split_sentences(text: str) -> list[str]:
    """Text cut after ., ! and ? that end a word; joined by spaces it is the text again."""
    return [s for s in re.split(r"(?<=[.!?]) ", text) if s]


class Filled(NamedTuple):
    """A haystack with needles; `spans` are theirs, in characters, in the order given."""

    text: str
    spans: tuple[Span, ...]


def insert(sentences: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> Filled:
    """Puts needles between sentences.

    Args:
      depths: per cent; a needle at depth d has d% of the haystack's characters before it, or as
        many as the nearest break between sentences allows. 0 is before all, 100 after all.
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

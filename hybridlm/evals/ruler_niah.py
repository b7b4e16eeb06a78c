"""RULER's eight needle tasks: the prompt asks for values hidden in a haystack by their keys.

Parameters: arXiv 2404.06654, section 3 and its code (`synthetic.yaml`). The needle's wording is
RULER's; the wording of the question is ours, so absolute scores are not comparable with published
ones.
"""

import dataclasses
import uuid

import numpy as np

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.evals.haystack import NoiseHaystack, TextHaystack, insert
from hybridlm.evals.sample import Draft, Sample, fit, generator
from hybridlm.evals.words import word_keys

DEPTHS = tuple(int(d) for d in np.round(np.linspace(0, 100, 40)))  # per cent


@dataclasses.dataclass(frozen=True)
class Needles:
    """A needle-in-a-haystack task.

    Attributes:
      haystack: "noise", "text" or "needles" (of other keys).
      key, value: "words", "numbers" (7 digits) or "uuids".
      keys: keys in the context, without those of a haystack of needles.
      values: values of each key.
      queries: keys that the prompt asks for.
      help, definition: see `hybridlm.evals.task.Task`.
    """

    name: str
    haystack: str
    key: str
    value: str
    help: str
    keys: int = 1
    values: int = 1
    queries: int = 1
    tokens_to_generate: int = 128
    metric: str = "all"
    definition: str = (
        "RULER, arXiv 2404.06654: keys are adjective-noun or uuid, values numbers of 7 digits or"
        " uuids, depths drawn from 40, rounded to 1%, without replacement"
    )

    def sample(
        self,
        tokenizer: Tokenizer,
        length: int,
        seed: int,
        index: int,
        depths: tuple[float, ...] | None = None,
    ) -> Sample:
        """The sample `index`; the needles' `depths` (per cent) are drawn from `DEPTHS` by default.

        Raises:
          UserError: if the task does not fit `length`.
        """
        rng = generator(self.name, length, seed, index)
        count = self.keys * self.values
        keys = names(rng, self.key, self.keys)
        values = names(rng, self.value, count, numbers_avoid=keys)
        if depths is None:
            depths = tuple(rng.choice(DEPTHS, size=count, replace=False).tolist())
        needles = [needle(keys[i // self.values], values[i], self.value) for i in range(count)]
        source = self._source(rng, {*keys, *values})
        asked = [needles.index(n) for n in needles[: self.queries * self.values]]
        names_asked = _listed(keys[: self.queries])
        what = f"special magic {self.value}"

        def make(units: int) -> Draft:
            head = f"Some {what} are hidden in this text. Keep them in mind.\n"
            filled = insert(source.sentences(units), needles, depths)
            question = f"\nWhat are all the {what} for {names_asked} in the text above?"
            spans = [(len(head) + a, len(head) + b) for a, b in (filled.spans[i] for i in asked)]
            return Draft(
                head + filled.text + question,
                f" The {what} for {names_asked} in the text above are",
                tuple(values[i] for i in asked),
                tuple(spans),
                tuple((end - 1 - len(values[i]), end - 1) for i, (_, end) in zip(asked, spans)),
                tuple(depths[i] for i in asked),
            )

        return fit(
            make,
            tokenizer,
            task=self.name,
            length=length,
            seed=seed,
            index=index,
            tokens_to_generate=self.tokens_to_generate,
            min_units=1,
        )

    def _source(self, rng: np.random.Generator, taken: set[str]):
        if self.haystack == "needles":
            return NeedleHaystack(rng, self.key, self.value, taken)
        return TextHaystack(rng) if self.haystack == "text" else NoiseHaystack()


def needle(key: str, value: str, kind: str) -> str:
    """The sentence of a needle, as in RULER."""
    return f"One of the special magic {kind} for {key} is: {value}."


class NeedleHaystack:
    """Needles with other keys and values, all different; a unit is a needle."""

    def __init__(self, rng: np.random.Generator, key: str, value: str, taken: set[str]):
        self._rng, self._kinds, self._taken = rng, (key, value), set(taken)
        self._made: list[str] = []

    def sentences(self, units: int) -> list[str]:
        """The first `units` needles; more units never change the earlier needles."""
        while len(self._made) < units:
            key, value = (self._new(kind) for kind in self._kinds)
            self._made.append(needle(key, value, self._kinds[1]))
        return self._made[:units]

    def _new(self, kind: str) -> str:
        while (name := names(self._rng, kind, 1)[0]) in self._taken:
            pass
        self._taken.add(name)
        return name


def names(
    rng: np.random.Generator, kind: str, count: int, numbers_avoid: list[str] | None = None
) -> list[str]:
    """`count` different words, 7-digit numbers or (version 4) uuids."""
    if kind == "words":
        return word_keys(rng, count)
    found = dict.fromkeys(numbers_avoid or ())
    avoided = len(found)
    while len(found) < avoided + count:
        if kind == "numbers":
            found[str(rng.integers(10**6, 10**7))] = None
        else:
            found[str(uuid.UUID(bytes=rng.bytes(16), version=4))] = None
    return list(found)[avoided:]


def _listed(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"


TASKS = (
    Needles("niah_single_1", "noise", "words", "numbers", "1 key in noise"),
    Needles("niah_single_2", "text", "words", "numbers", "1 key in text, the value a number"),
    Needles("niah_single_3", "text", "words", "uuids", "1 key in text, the value a uuid"),
    Needles("niah_multikey_1", "text", "words", "numbers", "4 keys in text, 1 asked for", keys=4),
    Needles("niah_multikey_2", "needles", "words", "numbers", "1 key among needles, numbers"),
    Needles("niah_multikey_3", "needles", "uuids", "uuids", "1 key among needles, uuids"),
    Needles("niah_multivalue", "text", "words", "numbers", "4 values of 1 key", values=4),
    Needles("niah_multiquery", "text", "words", "numbers", "4 keys asked for", keys=4, queries=4),
)

"""Samples of long-context tasks: their text, tokens and the spans of their needles."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError, UserError

Span = tuple[int, int]  # [first, end)


class Draft(NamedTuple):
    """A sample before tokenization.

    Attributes:
      prompt: context and question.
      answer_prefix: the beginning of the answer, which follows the prompt.
      references: texts that the answer must contain.
      needles: character spans of `prompt` that state the answer, in order.
      values: character spans of the references within the needles.
      depths: of each needle, per cent of the haystack before it.
    """

    prompt: str
    answer_prefix: str
    references: tuple[str, ...]
    needles: tuple[Span, ...] = ()
    values: tuple[Span, ...] = ()
    depths: tuple[float, ...] = ()


class Sample(NamedTuple):
    """A finished sample.

    Attributes:
      task, length, seed, index: these and the tokenizer determine the sample.
      prompt, answer_prefix, references, depths: see `Draft`.
      tokens: int32 (tokens,), BOS + prompt + answer_prefix; len(tokens) + tokens_to_generate is at
        most `length`.
      needle_spans, value_spans: token spans [first, end) of `Draft.needles` and `Draft.values`; a
        token that contains any character of a span belongs to it.
      tokens_to_generate: maximum number of tokens of the answer.
    """

    task: str
    length: int
    seed: int
    index: int
    prompt: str
    answer_prefix: str
    references: tuple[str, ...]
    depths: tuple[float, ...]
    tokens: np.ndarray
    needle_spans: tuple[Span, ...]
    value_spans: tuple[Span, ...]
    tokens_to_generate: int


def fit(
    make: Callable[[int], Draft],
    tokenizer: Tokenizer,
    *,
    task: str,
    length: int,
    seed: int,
    index: int,
    tokens_to_generate: int,
    min_units: int = 0,
) -> Sample:
    """The sample with the most units of haystack that fits `length`.

    Args:
      make: makes a draft with a given number of units (words, sentences, needles) of haystack.
      length: maximum tokens of BOS, prompt, answer prefix and answer together.
      min_units: the fewest units that the task needs.

    Raises:
      UserError: if `min_units` units do not fit; the message names the length that they need.
    """
    budget = length - tokens_to_generate - 1

    def size(units: int) -> int:
        draft = make(units)
        return len(tokenizer.encode(draft.prompt + draft.answer_prefix))

    if (needed := size(min_units)) > budget:
        raise UserError(
            f"{task} does not fit {length} tokens: with this tokenizer sample {index} needs"
            f" at least {needed + tokens_to_generate + 1}, {tokens_to_generate} of them for the answer"
        )
    low, high = min_units, max(2 * min_units, 1)
    while size(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    draft = make(low)
    text = draft.prompt + draft.answer_prefix
    ids = tokenizer.encode(text)
    tokens = np.concatenate([[tokenizer.bos_id], ids]).astype(np.int32)
    return Sample(
        task,
        length,
        seed,
        index,
        draft.prompt,
        draft.answer_prefix,
        draft.references,
        draft.depths,
        tokens,
        token_spans(tokenizer, ids, text, draft.needles),
        token_spans(tokenizer, ids, text, draft.values),
        tokens_to_generate,
    )


def token_spans(
    tokenizer: Tokenizer, ids: np.ndarray, text: str, spans: Sequence[Span], offset: int = 1
) -> tuple[Span, ...]:
    """The token spans [first, end) of character spans of `text`, which `ids` encodes.

    Args:
      offset: number of tokens before `ids` (BOS).

    Raises:
      DataError: if the tokenizer rewrites the text of a span.
    """
    decoded = tokenizer.decode(ids)

    def tokens_beyond(characters: int) -> int:
        """The fewest tokens whose text has more than `characters` characters."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if len(tokenizer.decode(ids[:middle])) > characters:
                high = middle
            else:
                low = middle + 1
        return low

    found = []
    for first, end in spans:
        wanted = text[first:end]
        if decoded != text:  # the tokenizer normalises text, which shifts characters
            occurrence = text[:first].count(wanted)
            first = -1
            for _ in range(occurrence + 1):
                first = decoded.find(wanted, first + 1)
            if first < 0:
                raise DataError(f"the tokenizer rewrites {wanted!r}, so its tokens are unknown")
            end = first + len(wanted)
        found.append((offset + tokens_beyond(first) - 1, offset + tokens_beyond(end - 1)))
    return tuple(found)


def generator(task: str, length: int, seed: int, index: int) -> np.random.Generator:
    """The random generator of one sample."""
    return np.random.default_rng([*task.encode(), length, seed, index])

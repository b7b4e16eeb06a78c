"""A sample of a long-context task: text, its tokens, and where in them the needles lie."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError, UserError

Span = tuple[int, int]  # [first, end)


class Draft(NamedTuple):
    """A sample before it is made of tokens.

    Attributes:
      prompt: context and question.
      answer_prefix: how the answer begins; follows the prompt.
      references: what the answer must hold.
      needles: spans of characters of `prompt` that state the answer, in order.
      values: spans of the references within them.
      depths: per cent of the haystack before each needle.
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
      task, length, seed, index: what it is a function of, with the tokenizer.
      prompt, answer_prefix, references, depths: see `Draft`.
      tokens: int32 (tokens,), BOS + prompt + answer_prefix; len(tokens) + tokens_to_generate is at
        most `length`.
      needle_spans, value_spans: [first, end) in `tokens` of `Draft.needles` and `Draft.values`: a
        token that holds any character of the needle belongs to it.
      tokens_to_generate: how long the answer may be.
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
    least: int = 0,
) -> Sample:
    """The largest draft that fits: one more unit of haystack would not.

    Args:
      make: a draft with so many units (words, sentences, needles) of haystack.
      length: tokens of BOS, prompt, answer prefix and answer together.
      least: units without which the task is another one.

    Raises:
      UserError: where `least` units do not fit; it names the length that would do.
    """
    budget = length - tokens_to_generate - 1

    def size(units: int) -> int:
        draft = make(units)
        return len(tokenizer.encode(draft.prompt + draft.answer_prefix))

    if (needed := size(least)) > budget:
        raise UserError(
            f"{task} does not fit {length} tokens: with this tokenizer sample {index} needs"
            f" at least {needed + tokens_to_generate + 1}, {tokens_to_generate} of them for the answer"
        )
    low, high = least, max(2 * least, 1)
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
    """[first, end) in tokens of spans of characters of `text`, whose tokens `ids` are.

    Args:
      offset: tokens that stand before `ids` (BOS).

    Raises:
      DataError: where the tokenizer rewrites the text of a span.
    """
    decoded = tokenizer.decode(ids)

    def reaches(characters: int) -> int:
        """The fewest tokens whose text has more than so many characters."""
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
        if decoded != text:  # normalised elsewhere, so characters have moved
            occurrence = text[:first].count(wanted)
            first = -1
            for _ in range(occurrence + 1):
                first = decoded.find(wanted, first + 1)
            if first < 0:
                raise DataError(f"the tokenizer rewrites {wanted!r}, so its tokens are not known")
            end = first + len(wanted)
        found.append((offset + reaches(first) - 1, offset + reaches(end - 1)))
    return tuple(found)


def generator(task: str, length: int, seed: int, index: int) -> np.random.Generator:
    """The random numbers of a sample; every sample has its own."""
    return np.random.default_rng([*task.encode(), length, seed, index])

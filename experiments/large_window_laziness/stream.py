"""The task stream: what must be copied lies at log-uniform distances, among short-range text.

A sequence is a chain of chunks of `SPAN` tokens, each after a piece of local text, without marks:

- local text: a walk of `LOCAL` symbols in which each has four likely successors, the same in every
  sequence. Any window of two tokens is enough to predict it, and its entropy is known.
- a new chunk: symbols of another alphabet, drawn without replacement, so that a symbol stands in
  one chunk of the sequence (in two, where more than CONTENT / SPAN chunks are new). What is left
  of the alphabet is all that is known of them.
- a copy: a chunk of the sequence once more. Its first token says which; the other seven can be
  copied. d is the distance to where that chunk stood last, hence to the nearest tokens that hold
  the answer. A d is drawn log-uniformly from 9 to 255 and moved to the nearest one there is; where
  none is near (as where a sequence has not got so far) the chunk is a new one.

A sequence is a function of (seed, index) and of nothing else.
"""

import functools
from typing import NamedTuple

import numpy as np

LOCAL, CONTENT = 16, 112  # symbols of the two alphabets: 0 to 15, and 16 to 127
VOCAB = LOCAL + CONTENT
LENGTH = 256
SPAN = 8
SUCCESSORS = (0.4, 0.3, 0.2, 0.1)
LOCAL_ENTROPY = float(-np.sum(np.array(SUCCESSORS) * np.log(SUCCESSORS)))  # nats a token
LOCAL_PIECE = (1, 4)  # tokens, shortest and longest
NEW_CHUNK = 0.15  # share of chunks that are new without a distance being drawn
NEAREST, FURTHEST = SPAN + 1, LENGTH - 1  # distances
NEAR_ENOUGH = 0.25  # of ln d, between the distance drawn and one that is there
BINS = ((9, 15), (16, 31), (32, 63), (64, 127), (128, 255))  # of distances, both ends in
AT_ONCE = 512  # sequences made together

LOCAL_TOKEN, NEW_TOKEN, COPY_START, COPIED_TOKEN = range(4)  # kinds


class Sequences(NamedTuple):
    """N sequences of T tokens.

    Attributes:
      tokens_NT: int32.
      kind_NT: int8, what each token is. The first of a piece of local text, which nothing
        predicts, counts as new.
      distance_NT: int32, of a copy's tokens to where they stood last; 0 for all others.
    """

    tokens_NT: np.ndarray
    kind_NT: np.ndarray
    distance_NT: np.ndarray

    def take(self, chosen: np.ndarray) -> "Sequences":
        """Some of the sequences."""
        return Sequences(*(x[chosen] for x in self))


def sequences(seed: int, first: int, count: int, power: float = 1.0) -> Sequences:
    """Sequences `first` to first + count - 1 of the stream `seed`.

    Args:
      power: density d^-power of what is drawn: 1 is log-uniform, 0 uniform (more far copies).
    """
    blocks = range(first // AT_ONCE, (first + count - 1) // AT_ONCE + 1)
    made = [_block(seed, block, power) for block in blocks]
    whole = Sequences(*(np.concatenate(parts) for parts in zip(*made)))
    start = first - blocks[0] * AT_ONCE
    return whole.take(np.arange(start, start + count))


def batch(sequences: Sequences) -> dict[str, np.ndarray]:
    """A training batch of `hybridlm`, (N, T): one document a row.

    What can be predicted counts in the loss: local text, and copies but for their first token.
    """
    tokens_NT, kind_NT = sequences.tokens_NT, np.roll(sequences.kind_NT, -1, axis=1)
    weights_NT = ((kind_NT == LOCAL_TOKEN) | (kind_NT == COPIED_TOKEN)).astype(np.float32)
    weights_NT[:, -1] = 0
    ones = np.ones_like(tokens_NT)
    return {
        "tokens": tokens_NT,
        "targets": np.roll(tokens_NT, -1, axis=1),
        "loss_weights": weights_NT,
        "segment_ids": ones,
        "positions": np.cumsum(ones, axis=1, dtype=np.int32) - 1,
    }


@functools.cache
def successors() -> np.ndarray:
    """(LOCAL, 4) int32: the likely successors of each local symbol, likeliest first."""
    rng = np.random.default_rng(2606_15378)
    rows = [rng.permutation(LOCAL)[: len(SUCCESSORS)] for _ in range(LOCAL)]
    return np.stack(rows).astype(np.int32)


@functools.lru_cache(maxsize=32)
def _block(seed: int, block: int, power: float) -> Sequences:
    """AT_ONCE sequences, made side by side, a chunk of each at a time."""
    rng = np.random.default_rng([seed, block, round(1000 * power)])
    longest = LENGTH + LOCAL_PIECE[1] + SPAN
    most = LENGTH // (LOCAL_PIECE[0] + SPAN) + 1  # chunks of a sequence
    tokens, distance = np.zeros((2, AT_ONCE, longest), np.int32)
    kind = np.full((AT_ONCE, longest), NEW_TOKEN, np.int8)
    chunks = _chunks(rng, most)
    last = np.full((AT_ONCE, most), -1)  # where each chunk stood last
    row, at, new = np.arange(AT_ONCE), np.zeros(AT_ONCE, int), np.zeros(AT_ONCE, int)
    walk = _walk(rng, longest)
    for _ in range(most):
        at = np.minimum(at, LENGTH)  # what comes behind the end is cut off
        size = rng.integers(LOCAL_PIECE[0], LOCAL_PIECE[1] + 1, AT_ONCE)
        for t in range(LOCAL_PIECE[1]):
            rows = row[t < size]
            tokens[rows, at[rows] + t] = walk[rows, at[rows] + t]
            kind[rows, at[rows] + t] = LOCAL_TOKEN if t else NEW_TOKEN
        at = at + size

        far = np.where(last >= 0, at[:, None] - last, 0)
        wanted = _draw(rng, AT_ONCE, power)
        off = np.abs(np.log(np.maximum(far, 1)) - np.log(wanted)[:, None])
        off[(far < NEAREST) | (far > FURTHEST)] = np.inf
        copied = (off.min(axis=1) < NEAR_ENOUGH) & (rng.random(AT_ONCE) >= NEW_CHUNK)
        chosen = np.where(copied, off.argmin(axis=1), new)
        place = at[:, None] + np.arange(SPAN)
        tokens[row[:, None], place] = chunks[row, chosen]
        kind[row[:, None], place] = np.where(copied, COPIED_TOKEN, NEW_TOKEN)[:, None]
        kind[row, at] = np.where(copied, COPY_START, NEW_TOKEN)
        distance[row[:, None], place] = np.where(copied, far[row, chosen], 0)[:, None]
        last[row, chosen] = at
        new = new + ~copied
        at = at + SPAN
    return Sequences(tokens[:, :LENGTH], kind[:, :LENGTH], distance[:, :LENGTH])


def _chunks(rng: np.random.Generator, count: int) -> np.ndarray:
    """(AT_ONCE, count, SPAN) chunks to choose from, in the order in which they are used."""
    rounds = -(-count * SPAN // CONTENT)
    symbols = np.tile(np.arange(LOCAL, VOCAB, dtype=np.int32), (AT_ONCE, rounds, 1))
    return rng.permuted(symbols, axis=2).reshape(AT_ONCE, -1, SPAN)[:, :count]


def _draw(rng: np.random.Generator, count: int, power: float) -> np.ndarray:
    """Distances with density d^-power, power 1 or 0."""
    share = rng.random(count)
    if power == 1:
        return NEAREST * (FURTHEST / NEAREST) ** share
    return NEAREST + (FURTHEST - NEAREST) * share


def _walk(rng: np.random.Generator, length: int) -> np.ndarray:
    """(AT_ONCE, length) walks over the local symbols; a piece of local text is a cut of one."""
    symbols = np.zeros((AT_ONCE, length), np.int32)
    symbols[:, 0] = rng.integers(0, LOCAL, AT_ONCE)
    choice = rng.choice(len(SUCCESSORS), p=SUCCESSORS, size=symbols.shape)
    for t in range(1, length):
        symbols[:, t] = successors()[symbols[:, t - 1], choice[:, t]]
    return symbols

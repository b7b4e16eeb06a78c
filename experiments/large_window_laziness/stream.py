"""The task: copies at log-uniform distances within text of short range.

A sequence alternates pieces of local text and chunks of `span` tokens, without separators:

- local text: a random walk over `local` symbols of order 2 or 3. Four successors are likely, the same
  in all sequences: they depend on the last two symbols and, if the last one is odd, on the third
  last, too. So a table of pairs of symbols does not suffice, and its entropy is known.
- a new chunk: symbols of another alphabet, drawn without replacement: a symbol is in one chunk of
  the sequence (in two, if more than content / span chunks are new). Only the symbols that are
  left in the alphabet tell anything about it.
- a copy: an earlier chunk of the sequence, repeated. Its first token identifies the chunk, and the
  others can be copied. d is the distance to the chunk's last occurrence, and thus to the nearest
  tokens with the answer. d is drawn log-uniformly from span + 1 (or `closest`) to length - 1, and
  the chunk with the nearest distance is taken; if none is near, as early in a sequence, the chunk
  is new.

A sequence depends only on (seed, index).
"""

import functools
from typing import NamedTuple

import numpy as np

SUCCESSORS = (0.4, 0.3, 0.2, 0.1)
LOCAL_ENTROPY = float(-np.sum(np.array(SUCCESSORS) * np.log(SUCCESSORS)))  # nats a token
NEW_CHUNK = 0.15  # share of chunks that are new whatever distance is drawn
NEAR_ENOUGH = 0.25  # largest difference in ln d between the drawn and the taken distance
AT_ONCE = 512  # sequences generated together


class CopyTask(NamedTuple):
    """The sizes of a stream.

    Attributes:
      length: tokens per sequence.
      span: tokens per chunk.
      local, content: sizes of the two alphabets; local text has the ids from 0, chunks the next.
      local_piece: least and most tokens of a piece of local text.
      closest: the least distance of a copy; None for the least possible.
    """

    name: str
    length: int
    span: int
    local: int
    content: int
    local_piece: tuple[int, int]
    closest: int | None = None

    @property
    def vocab(self) -> int:
        return self.local + self.content

    @property
    def nearest(self) -> int:
        return self.closest or self.span + 1

    @property
    def furthest(self) -> int:
        return self.length - 1

    @property
    def bins(self) -> tuple[tuple[int, int], ...]:
        """Ranges of distances, cut at powers of 2; both ends are included."""
        cuts = [2**i for i in range(1, 20) if self.nearest < 2**i < self.furthest]
        edges = [self.nearest, *cuts, self.furthest + 1]
        return tuple((first, end - 1) for first, end in zip(edges, edges[1:]))


MAIN = CopyTask("main", 64, 4, 8, 120, (1, 5))
LARGE = CopyTask("large", 1024, 16, 64, 960, (4, 12))
TASKS = {task.name: task for task in (MAIN, LARGE)}

LOCAL_TOKEN, NEW_TOKEN, COPY_START, COPIED_TOKEN = range(4)  # kinds


class Sequences(NamedTuple):
    """N sequences of T tokens.

    Attributes:
      tokens_NT: int32.
      kind_NT: int8, the kind of each token. The first two or three tokens of a piece of local text
        cannot be predicted and count as new.
      distance_NT: int32, from a copy's tokens to their last occurrence; 0 for other tokens.
    """

    tokens_NT: np.ndarray
    kind_NT: np.ndarray
    distance_NT: np.ndarray

    def take(self, chosen: np.ndarray) -> "Sequences":
        """Some of the sequences."""
        return Sequences(*(x[chosen] for x in self))


def sequences(task: CopyTask, seed: int, first: int, count: int, power: float = 1.0) -> Sequences:
    """Sequences `first` to first + count - 1 of the stream `seed`.

    Args:
      power: distances have density d^-power: 1 is log-uniform, 0 uniform (more far copies).
    """
    blocks = range(first // AT_ONCE, (first + count - 1) // AT_ONCE + 1)
    made = [_block(task, seed, block, power) for block in blocks]
    whole = Sequences(*(np.concatenate(parts) for parts in zip(*made)))
    start = first - blocks[0] * AT_ONCE
    return whole.take(np.arange(start, start + count))


def batch(sequences: Sequences) -> dict[str, np.ndarray]:
    """A training batch of `hybridlm`, (N, T), with one document per row.

    The loss counts the tokens that can be predicted: local text, and copies without their first.
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


def one_micro_batch(sequences: Sequences, window: int) -> dict[str, np.ndarray]:
    """The batch of a training step, (1, N, T), with the window of its layers."""
    split = {name: x[None] for name, x in batch(sequences).items()}
    return {**split, "window": np.full(1, window, np.int32)}


@functools.cache
def successors(local: int) -> np.ndarray:
    """(local, local, local, 4) int32: the likely successors after three local symbols, likeliest first.

    Where the last symbol is even, they do not depend on the first one.
    """
    rng = np.random.default_rng(2606_15378)
    ranks = rng.random((local,) * 4)
    table = np.argsort(ranks, axis=-1)[..., : len(SUCCESSORS)].astype(np.int32)
    table[:, :, ::2] = table[:1, :, ::2]
    return table


@functools.lru_cache(maxsize=32)
def _block(task: CopyTask, seed: int, block: int, power: float) -> Sequences:
    """AT_ONCE sequences, generated in parallel chunk by chunk."""
    rng = np.random.default_rng([seed, block, round(1000 * power)])
    shortest_piece, longest_piece = task.local_piece
    longest = task.length + longest_piece + task.span
    most = task.length // (shortest_piece + task.span) + 1  # chunks of a sequence
    tokens, distance = np.zeros((2, AT_ONCE, longest), np.int32)
    kind = np.full((AT_ONCE, longest), NEW_TOKEN, np.int8)
    chunks = _chunks(task, rng, most)
    last = np.full((AT_ONCE, most), -1)  # last position of each chunk
    row, at, new = np.arange(AT_ONCE), np.zeros(AT_ONCE, int), np.zeros(AT_ONCE, int)
    walk = _walk(task, rng, longest)
    for _ in range(most):
        at = np.minimum(at, task.length)  # tokens after the end are cut off
        size = rng.integers(shortest_piece, longest_piece + 1, AT_ONCE)
        for t in range(longest_piece):
            rows = row[t < size]
            tokens[rows, at[rows] + t] = walk[rows, at[rows] + t]
            # Predictable where the symbols that it depends on stand in the piece.
            order = 2 + walk[rows, at[rows] + t - 1] % 2 if t else t + 1
            kind[rows, at[rows] + t] = np.where(t >= order, LOCAL_TOKEN, NEW_TOKEN)
        at = at + size

        far = np.where(last >= 0, at[:, None] - last, 0)
        wanted = _draw(task, rng, power)
        off = np.abs(np.log(np.maximum(far, 1)) - np.log(wanted)[:, None])
        off[(far < task.nearest) | (far > task.furthest)] = np.inf
        copied = (off.min(axis=1) < NEAR_ENOUGH) & (rng.random(AT_ONCE) >= NEW_CHUNK)
        chosen = np.where(copied, off.argmin(axis=1), new)
        place = at[:, None] + np.arange(task.span)
        tokens[row[:, None], place] = chunks[row, chosen]
        kind[row[:, None], place] = np.where(copied, COPIED_TOKEN, NEW_TOKEN)[:, None]
        kind[row, at] = np.where(copied, COPY_START, NEW_TOKEN)
        distance[row[:, None], place] = np.where(copied, far[row, chosen], 0)[:, None]
        last[row, chosen] = at
        new = new + ~copied
        at = at + task.span
    return Sequences(tokens[:, : task.length], kind[:, : task.length], distance[:, : task.length])


def _chunks(task: CopyTask, rng: np.random.Generator, count: int) -> np.ndarray:
    """(AT_ONCE, count, span) new chunks, in the order of their use."""
    rounds = -(-count * task.span // task.content)
    alphabet = np.arange(task.local, task.vocab, dtype=np.int32)
    symbols = rng.permuted(np.tile(alphabet, (AT_ONCE, rounds, 1)), axis=2)
    whole = task.content // task.span * task.span  # a chunk lies within one round
    return symbols[:, :, :whole].reshape(AT_ONCE, -1, task.span)[:, :count]


def _draw(task: CopyTask, rng: np.random.Generator, power: float) -> np.ndarray:
    """A distance for each sequence, with density d^-power, power 1 or 0."""
    share = rng.random(AT_ONCE)
    if power == 1:
        return task.nearest * (task.furthest / task.nearest) ** share
    return task.nearest + (task.furthest - task.nearest) * share


def _walk(task: CopyTask, rng: np.random.Generator, length: int) -> np.ndarray:
    """(AT_ONCE, length) walks over the local symbols; a piece of local text is a slice of one."""
    table, before = successors(task.local), 3
    symbols = np.zeros((AT_ONCE, before + length), np.int32)
    symbols[:, :before] = rng.integers(0, task.local, (AT_ONCE, before))
    choice = rng.choice(len(SUCCESSORS), p=SUCCESSORS, size=symbols.shape)
    for t in range(before, symbols.shape[1]):
        past = (symbols[:, t - 3], symbols[:, t - 2], symbols[:, t - 1])
        symbols[:, t] = table[(*past, choice[:, t])]
    return symbols[:, before:]

"""Packs documents into sequences of `seq_len` tokens.

Letters: T = seq_len, S sequences, P pieces. A document of L tokens (BOS and EOS included, where it
has them) has L - 1 targets; token i + 1 is the target of token i.

"concat" joins the documents into one stream. Sequence i reads tokens [i*T, i*T + T], one more than
it has inputs, so every token except the first of the stream is a target exactly once. A partial
last sequence is padded and kept, also in training, so that an epoch reads every token.

"best_fit" cuts documents of more than T + 1 tokens into pieces of T + 1 tokens; the last token of a
piece is the first of the next. Best-fit-decreasing then packs the pieces into sequences
(arXiv 2404.10830). A piece of n + 1 tokens fills n positions: its last token is only a target.
"""

import bisect
import collections
from typing import NamedTuple

import numpy as np


class PackedSequence(NamedTuple):
    """One packed sequence: five arrays (T,), one row of a batch.

    Attributes:
      tokens: int32, 0 in padding.
      targets: int32, the next token, 0 in padding. The target of a document's last token is the
        next document's BOS and has loss weight 0.
      loss_weights: float32, 1 where the target belongs to the token's own document and counts
        (every token does, but in sources with answers, where theirs alone do), else 0.
      segment_ids: int32, 1, 2, ... by document in the sequence, 0 in padding.
      positions: int32, counted from 0 at the start of the sequence and of each document; 0 in
        padding.
    """

    tokens: np.ndarray
    targets: np.ndarray
    loss_weights: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


def empty_sequence(seq_len: int) -> PackedSequence:
    """A sequence that holds only padding."""
    dtypes = (np.int32, np.int32, np.float32, np.int32, np.int32)
    return PackedSequence(*(np.zeros(seq_len, dtype) for dtype in dtypes))


# --- concat -----------------------------------------------------------------------------------


def concat_count(tokens: int, seq_len: int) -> int:
    """The number of sequences of a split of `tokens` tokens; the last may be partial."""
    return max(0, -(-(tokens - 1) // seq_len))


def concat_range(index: int, tokens: int, seq_len: int) -> tuple[int, int]:
    """The tokens [start, stop) that sequence `index` reads: T + 1, fewer in the last."""
    return index * seq_len, min(index * seq_len + seq_len + 1, tokens)


def concat_sequence(
    tokens: np.ndarray,
    begins: np.ndarray,
    seq_len: int,
    cross_document_attention: bool = False,
    counts: np.ndarray | None = None,
) -> PackedSequence:
    """Makes a packed sequence of consecutive tokens of the stream.

    Args:
      tokens: int (n,), 2 <= n <= T + 1: the inputs, and the target of the last one.
      begins: bool (n,), True where a document begins.
      cross_document_attention: True makes all real tokens one segment and counts every target.
      counts: bool (n,), True where a token counts as a target; None where all do.
    """
    n = len(tokens) - 1
    counts = np.ones(n + 1, bool) if counts is None else counts
    sequence = empty_sequence(seq_len)
    sequence.tokens[:n], sequence.targets[:n] = tokens[:-1], tokens[1:]
    if cross_document_attention:
        sequence.segment_ids[:n], sequence.loss_weights[:n] = 1, counts[1:]
        sequence.positions[:n] = np.arange(n)
        return sequence
    sequence.loss_weights[:n] = ~begins[1:] & counts[1:]
    begins = begins[:-1].copy()
    begins[0] = True  # the sequence may start inside a document
    starts = np.flatnonzero(begins)
    segments = np.cumsum(begins, dtype=np.int32)
    sequence.segment_ids[:n] = segments
    sequence.positions[:n] = np.arange(n) - starts[segments - 1]
    return sequence


# --- best fit ---------------------------------------------------------------------------------


class Packing(NamedTuple):
    """The pieces of each sequence: sequence s holds pieces first[s] to first[s + 1].

    Attributes:
      first: int64 (S + 1,).
      starts: int64 (P,), the token of the split at which a piece begins.
      lengths: int32 (P,), the positions that a piece fills (1..T); it reads one token more.
    """

    first: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @property
    def sequences(self) -> int:
        return len(self.first) - 1


def cut_documents(offsets: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into pieces of at most T positions.

    Args:
      offsets: int64 (documents + 1,), the token at which each document begins, then the end.

    Returns:
      starts int64 (P,) and lengths int32 (P,), as in `Packing`, in the order of the documents.
    """
    lengths = np.diff(offsets) - 1
    pieces = -(-lengths // seq_len)
    index = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    piece_starts = np.repeat(offsets[:-1], pieces) + index * seq_len
    piece_lengths = np.minimum(np.repeat(lengths, pieces) - index * seq_len, seq_len)
    return piece_starts.astype(np.int64), piece_lengths.astype(np.int32)


def best_fit(offsets: np.ndarray, seq_len: int) -> Packing:
    """Best-fit-decreasing: each piece, longest first, goes to the fullest sequence that fits it.

    Pieces of equal length are placed together, and so are sequences of equal free space. The time
    grows with the number of distinct lengths (at most T), after a sort of the pieces. In a tie the
    earlier document goes first, into the sequence that reached its free space first.

    Args:
      offsets: int64 (documents + 1,); a document of one token has no target, and no piece.
    """
    starts, lengths = cut_documents(offsets, seq_len)
    assigned = _assign_sequences(lengths, seq_len)
    order = np.lexsort((starts, assigned))
    sequences = int(assigned.max()) + 1 if len(assigned) else 0
    first = np.searchsorted(assigned[order], np.arange(sequences + 1))
    return Packing(first.astype(np.int64), starts[order], lengths[order])


def _assign_sequences(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """The sequence of each piece, int64 (P,)."""
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    sizes, firsts = np.unique(-lengths[order], return_index=True)
    groups = np.split(order, firsts[1:])
    assigned = np.empty(len(lengths), np.int64)
    created = 0
    spaces: list[int] = []  # the free spaces that some sequence has, ascending
    open_by_space: dict[int, collections.deque] = {}  # sequences by free space, first come first

    def reopen(space: int, sequences: np.ndarray) -> None:
        if space and len(sequences):
            if space not in open_by_space:
                bisect.insort(spaces, space)
                open_by_space[space] = collections.deque()
            open_by_space[space].append(sequences)

    for size, group in zip((-sizes).tolist(), groups):
        done = 0
        while done < len(group):
            # As best fit does piece by piece: take the smallest sufficient free space, and fill the
            # same sequence until `size` no longer fits.
            at = bisect.bisect_left(spaces, size)
            if at < len(spaces):
                space = spaces[at]
                sequences = open_by_space[space].popleft()
                if not open_by_space[space]:
                    del open_by_space[space], spaces[at]
            else:
                space = seq_len
                count = -(-(len(group) - done) // (space // size))
                sequences = np.arange(created, created + count)
                created += count
            each = space // size
            full = min(len(sequences), (len(group) - done) // each)
            if full:
                assigned[group[done : done + full * each]] = np.repeat(sequences[:full], each)
                reopen(space - each * size, sequences[:full])
                done, sequences = done + full * each, sequences[full:]
            if len(sequences) and done < len(group):  # fewer pieces remain than one sequence fits
                remaining = len(group) - done
                assigned[group[done:]] = sequences[0]
                reopen(space - remaining * size, sequences[:1])
                done, sequences = len(group), sequences[1:]
            if len(sequences):
                if space not in open_by_space:
                    bisect.insort(spaces, space)
                    open_by_space[space] = collections.deque()
                open_by_space[space].appendleft(sequences)
    return assigned


def best_fit_sequence(
    pieces: list[np.ndarray],
    seq_len: int,
    cross_document_attention: bool = False,
    counts: list[np.ndarray] | None = None,
) -> PackedSequence:
    """Makes a packed sequence of pieces of documents, in order, and pads the rest.

    Args:
      pieces: int (n_i + 1,) each; the sum of the n_i is at most T.
      cross_document_attention: True makes all real tokens one segment.
      counts: bool (n_i + 1,) each, True where a token counts as a target; None where all do.
    """
    sequence, at = empty_sequence(seq_len), 0
    for number, piece in enumerate(pieces, start=1):
        n = len(piece) - 1
        span = slice(at, at + n)
        sequence.tokens[span], sequence.targets[span] = piece[:-1], piece[1:]
        sequence.segment_ids[span] = 1 if cross_document_attention else number
        sequence.positions[span] = np.arange(n) + (at if cross_document_attention else 0)
        sequence.loss_weights[span] = 1 if counts is None else counts[number - 1][1:]
        at += n
    return sequence

"""From documents to windows of `seq_len` tokens: which tokens a window holds, and its layout.

Letters: T = seq_len, W windows, P pieces. A document of L tokens (BOS and EOS included) has L - 1
targets; token i + 1 is the target of token i.

"concat" lays the documents end to end; window i reads tokens [i*T, i*T + T], one more than it has
inputs, so every token but the very first is a target exactly once. The last window may be partial:
it is padded and kept, in training too, so that an epoch leaves no token out.

"best_fit" cuts documents of more than T + 1 tokens into pieces of T + 1, whose last token is the
next piece's first, and packs the pieces into as few windows as best-fit-decreasing finds
(arXiv 2404.10830). A piece of n + 1 tokens fills n places, since its last token is a target only.
"""

import bisect
import collections
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """One sequence, five arrays (T,): the batch contract without its first axis.

    Attributes:
      tokens: int32, 0 in padding.
      targets: int32, the next token, 0 in padding; where a document ends it is the next one's
        BOS, with loss weight 0.
      loss_weights: float32, 1 where the target belongs to the token's own document, else 0.
      segment_ids: int32, 1, 2, ... by document in the window, 0 in padding.
      positions: int32, from 0 at the window's start and at each document's; 0 in padding.
    """

    tokens: np.ndarray
    targets: np.ndarray
    loss_weights: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


def empty_window(seq_len: int) -> Window:
    """A window of padding alone."""
    dtypes = (np.int32, np.int32, np.float32, np.int32, np.int32)
    return Window(*(np.zeros(seq_len, dtype) for dtype in dtypes))


# --- concat -----------------------------------------------------------------------------------


def concat_windows(tokens: int, seq_len: int) -> int:
    """Windows that a split of `tokens` tokens fills, the last perhaps in part."""
    return max(0, -(-(tokens - 1) // seq_len))


def concat_range(window: int, tokens: int, seq_len: int) -> tuple[int, int]:
    """The tokens [start, stop) that a window reads: T + 1, fewer in the last."""
    return window * seq_len, min(window * seq_len + seq_len + 1, tokens)


def concat_window(
    tokens: np.ndarray, begins: np.ndarray, seq_len: int, cross_document_attention: bool = False
) -> Window:
    """Lays out a window of the stream.

    Args:
      tokens: int (n,), 2 <= n <= T + 1: the inputs, and the last one's target.
      begins: bool (n,), True where a document begins.
      cross_document_attention: True makes all real tokens one segment and counts every target.
    """
    n = len(tokens) - 1
    window = empty_window(seq_len)
    window.tokens[:n], window.targets[:n] = tokens[:-1], tokens[1:]
    if cross_document_attention:
        window.segment_ids[:n], window.loss_weights[:n] = 1, 1
        window.positions[:n] = np.arange(n)
        return window
    window.loss_weights[:n] = ~begins[1:]
    begins = begins[:-1].copy()
    begins[0] = True  # whatever document the window opens in
    starts = np.flatnonzero(begins)
    segments = np.cumsum(begins, dtype=np.int32)
    window.segment_ids[:n] = segments
    window.positions[:n] = np.arange(n) - starts[segments - 1]
    return window


# --- best fit ---------------------------------------------------------------------------------


class Packing(NamedTuple):
    """Pieces by window: window w holds pieces first[w] to first[w + 1].

    Attributes:
      first: int64 (W + 1,).
      starts: int64 (P,), where a piece begins in the split, in tokens.
      lengths: int32 (P,), the places it fills (1..T); it reads one token more.
    """

    first: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @property
    def windows(self) -> int:
        return len(self.first) - 1


def cut_documents(offsets: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into pieces of at most T places.

    Args:
      offsets: int64 (documents + 1,), where each begins, and last the end.

    Returns:
      starts int64 (P,) and lengths int32 (P,), as in `Packing`, in the order of the documents.
    """
    places = np.diff(offsets) - 1
    pieces = -(-places // seq_len)
    index = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(offsets[:-1], pieces) + index * seq_len
    lengths = np.minimum(np.repeat(places, pieces) - index * seq_len, seq_len)
    return starts.astype(np.int64), lengths.astype(np.int32)


def best_fit(offsets: np.ndarray, seq_len: int) -> Packing:
    """Best-fit-decreasing: the longest piece first, into the fullest window that has room.

    Pieces of one length are placed together, and so are windows with one remaining space, so the
    time grows with the distinct lengths (at most T) beyond a sort of the pieces. Ties go to the
    earlier document and to the window that came to its remaining space first.

    Args:
      offsets: int64 (documents + 1,) of documents of two tokens or more.
    """
    starts, lengths = cut_documents(offsets, seq_len)
    window = _assign_windows(lengths, seq_len)
    order = np.lexsort((starts, window))
    windows = int(window.max()) + 1 if len(window) else 0
    first = np.searchsorted(window[order], np.arange(windows + 1))
    return Packing(first.astype(np.int64), starts[order], lengths[order])


def _assign_windows(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """The window of each piece, int64 (P,)."""
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    sizes, firsts = np.unique(-lengths[order], return_index=True)
    groups = np.split(order, firsts[1:])
    window = np.empty(len(lengths), np.int64)
    made = 0
    rooms: list[int] = []  # remaining spaces that some window has, ascending
    waiting: dict[int, collections.deque] = {}  # by remaining space, the windows in turn

    def give_back(room: int, windows: np.ndarray) -> None:
        if room and len(windows):
            if room not in waiting:
                bisect.insort(rooms, room)
                waiting[room] = collections.deque()
            waiting[room].append(windows)

    for size, group in zip((-sizes).tolist(), groups):
        done = 0
        while done < len(group):
            # The smallest sufficient room, and then the same window until it has none for `size`:
            # what best fit does one by one.
            at = bisect.bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms[at]
                windows = waiting[room].popleft()
                if not waiting[room]:
                    del waiting[room], rooms[at]
            else:
                room = seq_len
                count = -(-(len(group) - done) // (room // size))
                windows = np.arange(made, made + count)
                made += count
            each = room // size
            full = min(len(windows), (len(group) - done) // each)
            if full:
                window[group[done : done + full * each]] = np.repeat(windows[:full], each)
                give_back(room - each * size, windows[:full])
                done, windows = done + full * each, windows[full:]
            if len(windows) and done < len(group):  # fewer pieces left than one window takes
                left = len(group) - done
                window[group[done:]] = windows[0]
                give_back(room - left * size, windows[:1])
                done, windows = len(group), windows[1:]
            if len(windows):
                if room not in waiting:
                    bisect.insort(rooms, room)
                    waiting[room] = collections.deque()
                waiting[room].appendleft(windows)
    return window


def packed_window(
    pieces: list[np.ndarray], seq_len: int, cross_document_attention: bool = False
) -> Window:
    """Lays out pieces of documents, one after the other, and pads the rest.

    Args:
      pieces: int (n_i + 1,) each, with the n_i adding up to at most T.
      cross_document_attention: True makes all real tokens one segment.
    """
    window, at = empty_window(seq_len), 0
    for number, piece in enumerate(pieces, start=1):
        n = len(piece) - 1
        here = slice(at, at + n)
        window.tokens[here], window.targets[here] = piece[:-1], piece[1:]
        window.segment_ids[here] = 1 if cross_document_attention else number
        window.positions[here] = np.arange(n) + (at if cross_document_attention else 0)
        at += n
    window.loss_weights[:at] = 1
    return window

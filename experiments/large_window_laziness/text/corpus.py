"""The text: sources of the Python packages on this machine, with copies spliced into it.

`prepare` writes a BPE and the tokens of two splits; a file is held out or not by its digest, so
exact duplicates lie on one side (near ones, such as vendored packages, may not). A sequence is
`length` tokens of the stream of files, in one segment: attention may look across files, which an
end-of-text token separates. Over 15% of its tokens, copies of earlier tokens of the same sequence
are written, each 16 to 64 tokens long, at a log-uniform distance.
"""

import concurrent.futures
import hashlib
import importlib.util
import os
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.large_window_laziness import stream
from experiments.large_window_laziness.text.arms import TextScale
from hybridlm.data.tokenizers import HFTokenizer, train_bpe
from hybridlm.errors import UserError
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_text, writing

HELD_OUT_SHARE = 0.02  # of the files
LARGEST = 400_000  # bytes; longer files are mostly tables that a program wrote
BPE_BYTES = 12_000_000  # that the BPE is trained on
SPLICED = 0.15  # share of a sequence's tokens in spliced copies
CONTEXT = 4  # tokens before a target that a repeat has in common with the earlier place
TRIES = 20  # draws of a length and a distance for each copy


class Corpus(NamedTuple):
    """Tokens, uint16, as flat streams, with the facts of `corpus.json`."""

    train: np.ndarray
    held_out: np.ndarray
    tokenizer: HFTokenizer
    facts: dict


class Spliced(NamedTuple):
    """N sequences of T tokens.

    Attributes:
      tokens_NT: int32.
      distance_NT: int32, from a spliced token to what it copies; 0 for other tokens.
      age_NT: int32, the spliced tokens before it in its copy; -1 for other tokens.
    """

    tokens_NT: np.ndarray
    distance_NT: np.ndarray
    age_NT: np.ndarray

    def as_sequences(self) -> stream.Sequences:
        """For batches in which all tokens count."""
        kind_NT = np.full(self.tokens_NT.shape, stream.LOCAL_TOKEN, np.int8)
        return stream.Sequences(self.tokens_NT, kind_NT, self.distance_NT)


class Labels(NamedTuple):
    """What each token is as a target, (N, T).

    A repeat is a token that stands earlier after the same `CONTEXT` tokens.

    Attributes:
      nearest_NT: int32, the distance to the nearest earlier place; 0 for a token that is no repeat.
      spliced_NT: bool, repeats in a spliced copy of the place that it copies.
      natural_NT: bool, repeats outside spliced copies, without the first `CONTEXT` tokens after a
        copy and of the sequence.
      plain_NT: bool, tokens that are no repeat, outside spliced copies with the same exceptions.
    """

    nearest_NT: np.ndarray
    spliced_NT: np.ndarray
    natural_NT: np.ndarray
    plain_NT: np.ndarray


def sources(most: int | None = None) -> Iterator[tuple[bytes, str]]:
    """(digest, text) of the machine's Python files, each text once, in the order of their digests.

    Args:
      most: bytes after which to stop; None for all.
    """
    found: dict[bytes, pathlib.Path] = {}
    for top in _folders():
        for path in top.rglob("*.py"):
            if path.is_file() and 500 <= path.stat().st_size <= LARGEST:
                found.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
    total = 0
    for digest in sorted(found):
        if most is not None and total >= most:
            return
        try:
            text = found[digest].read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        total += len(text.encode())
        yield digest, text


def _folders() -> set[pathlib.Path]:
    """The standard library, and the folders of packages that this process imports from."""
    places = {sysconfig.get_paths()[kind] for kind in ("purelib", "platlib", "stdlib")}
    for name in ("jax", "flax"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            places.add(str(pathlib.Path(spec.origin).parents[1]))
    return {pathlib.Path(place).resolve() for place in places}


def prepare(folder: pathlib.Path, scale: TextScale) -> Corpus:
    """The corpus in `folder`, which is made if it is not there.

    Raises:
      UserError: if there is too little text for one run, or the folder holds another scale's.
    """
    if not (folder / "corpus.json").exists():
        _make(folder, scale)
    facts = json_text.loads((folder / "corpus.json").read_text())
    if (facts["vocab"], facts["source_bytes"]) != (scale.vocab, scale.source_bytes):
        raise UserError(f"{folder} holds the text of another scale than {scale.name}")
    streams = [np.load(folder / f"{split}.npy", mmap_mode="r") for split in ("train", "held_out")]
    return Corpus(*streams, HFTokenizer(str(folder / "tokenizer.json")), facts)


def _make(folder: pathlib.Path, scale: TextScale) -> None:
    make_folder(folder)
    texts = list(sources(scale.source_bytes))
    held = {d for d, _ in texts if int.from_bytes(d[-4:]) < HELD_OUT_SHARE * 2**32}
    sample, size = [], 0
    for digest, text in texts:
        if digest not in held and size < BPE_BYTES:
            sample.append(text)
            size += len(text)
    path = folder / "tokenizer.json"
    path.unlink(missing_ok=True)
    tokenizer = train_bpe(sample, scale.vocab, path)
    splits: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        encoded = threads.map(tokenizer.encode, (text for _, text in texts))
        for (digest, _), tokens in zip(texts, encoded, strict=True):
            own = splits["held_out" if digest in held else "train"]
            own += [tokens.astype(np.uint16), np.uint16([tokenizer.eos_id])]
    streams = {name: np.concatenate(parts) for name, parts in splits.items() if parts}
    least = {"train": scale.batch * scale.length, "held_out": 2 * scale.rows * scale.length}
    for name, count in least.items():
        if len(streams.get(name, ())) < count:
            raise UserError(f"the Python files of this machine give less than {count:,} tokens")
    for name, tokens in streams.items():
        draft = folder / "draft.npy"
        with writing(folder / f"{name}.npy"):
            np.save(draft, tokens)
            os.replace(draft, folder / f"{name}.npy")
    facts = {
        "vocab": scale.vocab,
        "source_bytes": scale.source_bytes,
        "files": len(texts),
        "bytes": sum(len(text.encode()) for _, text in texts),
        "train_tokens": len(streams["train"]),
        "held_out_tokens": len(streams["held_out"]),
        "digest": hashlib.sha256(streams["train"].tobytes()).hexdigest(),
    }
    write_text(folder / "corpus.json", json_text.dumps(facts))


def training(corpus: Corpus, scale: TextScale, seed: int, first: int, count: int) -> Spliced:
    """Sequences `first` to first + count - 1 of a seed: all rows in a drawn order, epoch by epoch."""
    rows, T = len(corpus.train) // scale.length, scale.length
    made = []
    for index in range(first, first + count):
        epoch, at = divmod(index, rows)
        start = int(_order(rows, seed, epoch)[at]) * T
        row_T = np.asarray(corpus.train[start : start + T], np.int32)
        made.append(splice(row_T, scale, np.random.default_rng([seed, index])))
    return Spliced(*(np.stack(parts) for parts in zip(*made)))


def held_out(corpus: Corpus, scale: TextScale, count: int, times: int = 1) -> Spliced:
    """The first held-out sequences of `times` the length, the same for all runs."""
    scale = scale._replace(length=times * scale.length)
    T, made = scale.length, []
    for index in range(count):
        row_T = np.asarray(corpus.held_out[index * T : (index + 1) * T], np.int32)
        made.append(splice(row_T, scale, np.random.default_rng([10**6, times, index])))
    return Spliced(*(np.stack(parts) for parts in zip(*made)))


def splice(row_T: np.ndarray, scale: TextScale, rng: np.random.Generator) -> Spliced:
    """One sequence with copies of its own earlier tokens.

    Copies do not touch: at least `CONTEXT` tokens lie between them. A copy may copy a copy. The
    distance is drawn first, log-uniformly from the copy's length to the sequence's less that, and
    then one of the places that are free for it; only a distance without any is drawn anew.
    """
    T, (shortest, longest) = len(row_T), scale.span
    left, copies = round(SPLICED * T), []
    taken_T = np.zeros(T, bool)
    for _ in range(TRIES * T // shortest):
        if left < shortest:
            break
        size = int(rng.integers(shortest, longest + 1))
        nearest, furthest = size, T - size
        distance = int(nearest * (furthest / nearest) ** rng.random())
        if size > left:
            continue
        starts = np.arange(distance, T - size + 1)
        before = np.append(0, np.cumsum(taken_T))  # taken tokens before each place
        ends = np.minimum(starts + size + CONTEXT, T)
        free = starts[before[ends] == before[np.maximum(starts - CONTEXT, 0)]]
        if not len(free):
            continue
        start = int(rng.choice(free))
        taken_T[start : start + size] = True
        copies.append((start, size, distance))
        left -= size
    tokens_T, distance_T = row_T.copy(), np.zeros(T, np.int32)
    age_T = np.full(T, -1, np.int32)
    for start, size, distance in sorted(copies):
        tokens_T[start : start + size] = tokens_T[start - distance : start - distance + size]
        distance_T[start : start + size] = distance
        age_T[start : start + size] = np.arange(size)
    return Spliced(tokens_T, distance_T, age_T)


def labels(made: Spliced) -> Labels:
    """What each token is (see `Labels`)."""
    nearest_NT = np.stack([_nearest(row_T) for row_T in made.tokens_NT])
    inside_NT = made.age_NT >= 0
    after_NT = np.zeros_like(inside_NT)
    for back in range(1, CONTEXT + 1):
        after_NT[:, back:] |= inside_NT[:, :-back]
    outside_NT = ~inside_NT & ~after_NT
    outside_NT[:, :CONTEXT] = False
    copied_NT = (made.age_NT >= CONTEXT) & (nearest_NT == made.distance_NT)
    repeat_NT = nearest_NT > 0
    return Labels(nearest_NT, copied_NT, outside_NT & repeat_NT, outside_NT & ~repeat_NT)


def _nearest(row_T: np.ndarray) -> np.ndarray:
    """The distance to the nearest earlier end of the same CONTEXT + 1 tokens; 0 for none."""
    T = len(row_T)
    parts = [row_T[i : T - CONTEXT + i] for i in range(CONTEXT + 1)]
    _, group = np.unique(np.stack(parts, axis=1), axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    same = group.ravel()[order][1:] == group.ravel()[order][:-1]
    found = np.zeros(T, np.int32)
    found[CONTEXT + order[1:][same]] = (order[1:] - order[:-1])[same]
    return found


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    key = (rows, seed, epoch)
    if key not in _orders:
        _orders.clear()
        _orders[key] = np.random.default_rng([seed, epoch]).permutation(rows)
    return _orders[key]

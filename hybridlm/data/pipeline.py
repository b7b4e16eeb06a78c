"""Makes batches from a `DataConfig`; the batch of step n depends only on (seed, n).

The stream of training sequences is infinite and addressed by index. Grain's index shuffle shuffles
the packed sequences of each source again in each epoch, and the mixture selects the source of each
sequence. Row r of step n is sequence n * batch_size + r. All steps cost the same, so a resumed run
needs no state, and each host can read only its own rows of the global batch.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from hybridlm import storage
from hybridlm.data import mixture, packing
from hybridlm.data.epochs import check_epochs
from hybridlm.data.packing import PackedSequence
from hybridlm.data.settings import DataConfig
from hybridlm.data.store import Opening, Split, TokenStore, loss_mask_of
from hybridlm.data.tokenizers import Tokenizer, open_tokenizer
from hybridlm.errors import DataError, StorageError
from hybridlm.storage.local_copies import copy_of

_INFINITE = 2**62

Batch = dict[str, np.ndarray]


class SplitSequences:
    """The packed sequences of one split, by index (a Grain data source)."""

    def __init__(self, split: Split, seq_len: int, method: str, cross_document_attention: bool):
        self._split, self._seq_len, self._cross = split, seq_len, cross_document_attention
        self._packing, self._len = None, packing.concat_count(split.tokens, seq_len)
        if method == "best_fit":
            self._packing = packing.best_fit(split.document_offsets(), seq_len)
            self._len = self._packing.sequences

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> PackedSequence:
        mask = loss_mask_of(self._split)
        if self._packing is None:
            start, stop = packing.concat_range(index, self._split.tokens, self._seq_len)
            tokens, begins = self._split.read(start, stop)
            counts = None if mask is None else mask.read(start, stop)
            return packing.concat_sequence(tokens, begins, self._seq_len, self._cross, counts)
        first, last = self._packing.first[index], self._packing.first[index + 1]
        starts = self._packing.starts[first:last].tolist()
        lengths = self._packing.lengths[first:last].tolist()
        spans = [(s, s + n + 1) for s, n in zip(starts, lengths)]
        pieces = [self._split.read(*span)[0] for span in spans]
        counts = None if mask is None else [mask.read(*span) for span in spans]
        return packing.best_fit_sequence(pieces, self._seq_len, self._cross, counts)


class _Selection(grain.transforms.DatasetSelectionMap):
    def __init__(self, weights: tuple[int, ...]):
        self._weights = weights

    def __len__(self) -> int:
        return _INFINITE

    def __getitem__(self, index: int) -> tuple[int, int]:
        return mixture.select(index, self._weights)


class _Batches:
    """Batches by step (a Grain data source)."""

    def __init__(self, pipeline: "Pipeline", rows: Sequence[int] | slice):
        self._pipeline, self._rows = pipeline, rows

    def __len__(self) -> int:
        return _INFINITE // self._pipeline.batch_size

    def __getitem__(self, step: int) -> Batch:
        return self._pipeline.batch(step, self._rows)


class Pipeline:
    """Batches for training and evaluation. Built by `open_pipeline`.

    A batch is a dict of `tokens`, `targets`, `segment_ids`, `positions` (int32) and `loss_weights`
    (float32), each (rows, seq_len), as `hybridlm.data.packing.PackedSequence` describes.

    Attributes:
      tokenizer: the tokenizer of all sources.
      seq_len, batch_size: as in `DataConfig`; batch_size is the size of the global batch.
      tokens_per_epoch: training tokens of all sources, each counted once.
    """

    def __init__(
        self, data: DataConfig, stores: dict[str, TokenStore], tokenizer: Tokenizer, *, seed: int
    ):
        self.tokenizer, self.seq_len, self.batch_size = tokenizer, data.seq_len, data.batch_size
        # Sorted, so that batches do not depend on the order of the sources in the config.
        self._names = sorted(stores)
        self._stores = stores
        self._weights = mixture.integer_weights([data.sources[n].weight for n in self._names])
        self._sources = data.sources
        self._prefetch = data.prefetch
        layout = (data.seq_len, data.packing, data.cross_document_attention)
        self._train = {n: SplitSequences(stores[n].train, *layout) for n in self._names}
        self._heldout = {n: SplitSequences(stores[n].heldout, *layout) for n in self._names}
        self.cross_document_attention = data.cross_document_attention
        self._seed = seed

    def check(self) -> None:
        """Checks that there is text to train on, and to evaluate.

        Raises:
          DataError: naming the source.
        """
        for name in self._names:
            tokens = self._stores[name].train.tokens
            if tokens <= self.seq_len:
                raise DataError(
                    f"data.sources.{name}: {self._stores[name].folder} has {tokens} training tokens,"
                    f" too few for one sequence of data.seq_len {self.seq_len}: give it more text,"
                    " or shorten the sequences"
                )
            if not len(self._train[name]):
                raise DataError(
                    f"data.sources.{name}: no training document has two tokens, so that there is no"
                    " target"
                )
            if len(self._train[name]) > 2**32:
                raise DataError(
                    f"data.sources.{name}: has {len(self._train[name])} sequences, more than the "
                    "2^32 that can be shuffled; use a longer data.seq_len or several sources"
                )
        if not any(map(len, self._heldout.values())):
            raise DataError(
                f"data.sources: {', '.join(self._names)} has a single document (or copies of one), "
                "so none can be held out for evaluation; split it into several documents"
            )

    @functools.cached_property
    def _stream(self) -> grain.MapDataset:
        """The training sequences, without end."""
        return grain.MapDataset.select_from_datasets(
            [
                grain.MapDataset.source(self._train[name])
                .shuffle(seed=mixture.source_seed(self._seed, name))
                .repeat()
                for name in self._names
            ],
            _Selection(self._weights),
        )

    @property
    def tokens_per_epoch(self) -> int:
        return sum(store.train.tokens for store in self._stores.values())

    @property
    def train_splits(self) -> dict[str, Split]:
        """The training split of each source, by name."""
        return {name: self._stores[name].train for name in self._names}

    @property
    def heldout_splits(self) -> dict[str, Split]:
        """The held-out split of each source, by name."""
        return {name: self._stores[name].heldout for name in self._names}

    def batch(self, step: int, rows: Sequence[int] | slice = slice(None)) -> Batch:
        """The batch of `step` (from 0), or the given rows of it; depends only on (seed, step)."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        first = step * self.batch_size
        selected = range(self.batch_size)[rows] if isinstance(rows, slice) else rows
        return _stack([self._stream[first + row] for row in selected], self.seq_len)

    def iterate(
        self, start_step: int = 0, rows: Sequence[int] | slice = slice(None)
    ) -> Iterator[Batch]:
        """An infinite iterator of batches from `start_step` on; Grain's threads read ahead.

        The result is a `grain.DatasetIterator`; its `close()` stops the threads.
        """
        options = grain.ReadOptions(
            num_threads=min(self._prefetch, 4), prefetch_buffer_size=self._prefetch
        )
        batches = grain.MapDataset.source(_Batches(self, rows)).to_iter_dataset(options)
        iterator = iter(batches)
        iterator.set_state({"next_index": start_step})
        return iterator

    def heldout_batches(self, batch_size: int, sequences: int) -> Iterator[Batch]:
        """The first `sequences` held-out sequences, in batches; padding fills the last batch.

        The order is fixed and does not depend on the seed. Sources alternate by weight until they
        run out. The sequences of a source are ordered by the reversed bits of their index: any
        number of them is spread evenly over its held-out documents, and a smaller number selects a
        prefix of a larger one. There are fewer than `sequences` if the sources have fewer.
        """
        selected = self.heldout_sequences(sequences)
        for start in range(0, len(selected), batch_size):
            batch = selected[start : start + batch_size]
            group = [self._heldout[name][index] for name, index in batch]
            group += [packing.empty_sequence(self.seq_len)] * (batch_size - len(group))
            yield _stack(group, self.seq_len)

    def heldout_sequences(self, count: int) -> list[tuple[str, int]]:
        """(source, index) of the first `count` held-out sequences, see `heldout_batches`."""
        remaining = {name: len(self._heldout[name]) for name in self._names}
        orders = {name: mixture.spread_order(length) for name, length in remaining.items()}
        weights = dict(zip(self._names, self._weights))
        count = min(count, sum(remaining.values()))
        selected: list[tuple[str, int]] = []
        # The sources that have sequences left alternate; when one runs out, the others continue.
        while len(selected) < count:
            active = [name for name in self._names if remaining[name]]
            for index in range(count - len(selected)):
                source, _ = mixture.select(index, [weights[name] for name in active])
                name = active[source]
                selected.append((name, next(orders[name])))
                remaining[name] -= 1
                if not remaining[name]:
                    break
        return selected

    def check_epochs(self, steps: int) -> None:
        """Checks that `steps` steps read no source more often than its `max_epochs`.

        Raises:
          ConfigError: with the steps that the weights allow, and with weights that would fit.
        """
        windows = {name: len(self._train[name]) for name in self._names}
        check_epochs(self._sources, windows, steps, self.batch_size)

    def counts(self, steps: int | None = None) -> dict[str, Any]:
        """A description of the data that a run reads, ready for JSON.

        Args:
          steps: steps of the run; if given, the result has the epochs that it reads of each source.

        Returns:
          {"sources": {name: {"folder", "weight" (share), "sha256" (which covers
          text, tokenizer and tokens), "heldout_fraction", "epochs", "train": {...}, "heldout":
          {...}}}, "tokens_per_epoch", "vocab_size", "tokenizer" (its fingerprint)}. Each split has
          documents, tokens, bytes, token_bytes, unknown_tokens and windows (packed sequences).
        """
        sources = {}
        for name, weight in zip(self._names, self._weights):
            share = weight / sum(self._weights)
            store = self._stores[name]
            entry: dict[str, Any] = {
                "folder": str(store.folder),
                "weight": share,
                "sha256": store.sha256,
                "heldout_fraction": store.heldout_fraction,
                "train": _split_counts(store.train, self._train[name]),
                "heldout": _split_counts(store.heldout, self._heldout[name]),
            }
            if steps is not None:
                sequences = steps * self.batch_size * share
                entry["epochs"] = sequences / len(self._train[name])
            sources[name] = entry
        return {
            "sources": sources,
            "tokens_per_epoch": self.tokens_per_epoch,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": self.tokenizer.fingerprint,
        }


def _split_counts(split: Split, sequences: SplitSequences) -> dict[str, int]:
    keys = ("documents", "tokens", "bytes", "token_bytes", "unknown_tokens")
    return {**{key: getattr(split, key) for key in keys}, "windows": len(sequences)}


def _stack(sequences: list[PackedSequence], seq_len: int) -> Batch:
    # The empty sequence gives a batch of no rows its shape and dtype.
    columns = zip(packing.empty_sequence(seq_len), *sequences)
    return {name: np.stack(column)[1:] for name, column in zip(PackedSequence._fields, columns)}


# --- opening ----------------------------------------------------------------------------------


def open_pipeline(
    data: DataConfig, *, seed: int, workdir: str | Path, training: bool = True
) -> Pipeline:
    """Opens every source; tokenizes text that no earlier run has tokenized.

    What opening writes (the tokens of text, the indices of foreign stores) goes to
    `data.token_cache`, or `workdir`/tokens. In a bucket, both are copied to and from a folder of
    the user's cache, where they are read.

    Args:
      training: whether to check that there is enough text to train on (see `Pipeline.check`); a
        reader of held-out text checks that itself.

    Raises:
      DataError: if a source cannot be read; the message is one sentence.
    """
    tokenizer = open_tokenizer(data.tokenizer)
    cache = storage.expand(data.token_cache or storage.open_path(workdir) / "tokens")
    shared = os.fspath(cache) if storage.is_remote(cache) else None
    if shared is not None:
        cache = copy_of(shared)
    stores = {}
    for name, source in data.sources.items():
        opening = Opening(name, tokenizer, cache, data.heldout_fraction, data.verify, shared, [])
        try:
            stores[name] = source.on_this_machine().open(opening)
            opening.share()
        except (DataError, StorageError) as error:
            raise type(error)(f"data.sources.{name}: {error}") from None
    pipeline = Pipeline(data, stores, tokenizer, seed=seed)
    if training:
        pipeline.check()
    return pipeline

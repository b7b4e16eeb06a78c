"""A run's held-out text, in sequences of any length."""

import dataclasses

import numpy as np

from hybridlm.data.pipeline import Pipeline, open_pipeline
from hybridlm.errors import RunError, UserError
from hybridlm.runs import OpenedModel


def open_heldout(opened: OpenedModel, length: int, reader: str) -> Pipeline:
    """The data of the run, in sequences of `length` tokens.

    Args:
      reader: name of the task or probe that reads the data, for error messages.

    Raises:
      RunError: if `opened` is a model folder, which has no data.
      UserError: if the held-out text has no sequence of the length.
    """
    if opened.data is None:
        raise RunError(
            f"{reader} reads the held-out data of a run, and {opened.path} is a model folder without"
            " a run: give the run's folder"
        )
    data = dataclasses.replace(opened.data, seq_len=length)
    pipeline = open_pipeline(data, seed=opened.seed, workdir=opened.path, training=False)
    longest = max(split.tokens for split in pipeline.heldout_splits.values()) - 1  # and a target
    if longest < length:
        raise UserError(
            f"{reader} does not fit {length:,} tokens: the run's held-out text has {longest + 1:,},"
            f" enough for {max(longest, 0):,}"
        )
    return pipeline


def heldout_documents(
    opened: OpenedModel, length: int, count: int, reader: str
) -> list[np.ndarray]:
    """The first `length` tokens, BOS included, of at most `count` held-out documents.

    Shorter documents are skipped.

    Raises:
      UserError: if every document is shorter. RunError: see `open_heldout`.
    """
    found: list[np.ndarray] = []
    for split in open_heldout(opened, length, reader).heldout_splits.values():
        offsets = split.document_offsets()
        for first in offsets[:-1][np.diff(offsets) >= length].tolist():
            if len(found) < count:
                found.append(split.read(first, first + length)[0])
    if not found:
        raise UserError(f"{reader}: no held-out document has {length:,} tokens: take less")
    return found

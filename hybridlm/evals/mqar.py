"""Multi-query associative recall (arXiv 2312.04927, appendix E; zoology's generator).

A sequence of L tokens begins with P pairs k1 v1 k2 v2 ...; each key then occurs once more, as a
query, and the model must predict its value as the next token. Keys are drawn from [1, V/2), values
from [V/2, V), both without replacement. After the pairs there are (L - 2P) / 2 slots of two tokens.
The queries' slots are drawn without replacement with p(g) proportional to g^(a-1) for g = 1, 2, ...
counted from the pairs: with a = 0.01 most queries come early, a = 1 is uniform. All other tokens
are filler: random tokens of the whole vocabulary, keys and values included (zoology's default), or
token 0 (the paper's figures). Only the queries' positions count in the loss.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from hybridlm.errors import UserError
from hybridlm.evals.answered import accuracy_headline
from hybridlm.evals.scoring import NOT_FINITE, likeliest
from hybridlm.evals.settings import EvalSettings
from hybridlm.evals.task import Record
from hybridlm.runs import OpenedModel


class MQAR(NamedTuple):
    """A batch in the form of `hybridlm.data.Batch`; arrays are (batch, time) unless stated.

    Attributes:
      tokens: int32.
      targets: int32, the value at a query's position and 0 elsewhere.
      loss_weights: float32, 1 at queries' positions and 0 elsewhere.
      segment_ids, positions: int32; each row is one document.
      gaps: int32 (batch, pairs), the slot of each key's query, counted from 0.
    """

    tokens: np.ndarray
    targets: np.ndarray
    loss_weights: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    gaps: np.ndarray

    def batch(self) -> dict[str, np.ndarray]:
        """The arrays that a training or evaluation step takes."""
        return {name: value for name, value in self._asdict().items() if name != "gaps"}


def mqar(
    length: int,
    pairs: int,
    batch: int,
    *,
    seed: int,
    index: int = 0,
    vocab_size: int = 8192,
    power: float = 0.01,
    random_filler: bool = True,
) -> MQAR:
    """Batch `index` of the task; it depends on the arguments alone.

    Raises:
      UserError: if the pairs and their queries do not fit, or the vocabulary is too small.
    """
    check(length, pairs, vocab_size)
    if not power > 0:
        raise UserError(f"mqar: power must be positive, not {power}")
    rng = np.random.default_rng([seed, index])
    p = gap_distribution(length, pairs, power)
    half = vocab_size // 2
    tokens = np.zeros((batch, length), np.int32)
    targets = np.zeros((batch, length), np.int32)
    weights = np.zeros((batch, length), np.float32)
    gaps = np.zeros((batch, pairs), np.int32)
    if random_filler:
        tokens[:] = rng.integers(0, vocab_size, tokens.shape)
    for row in range(batch):
        keys = 1 + rng.choice(half - 1, pairs, replace=False)
        values = half + rng.choice(vocab_size - half, pairs, replace=False)
        gaps[row] = rng.choice(len(p), pairs, replace=False, p=p)
        tokens[row, 0 : 2 * pairs : 2], tokens[row, 1 : 2 * pairs : 2] = keys, values
        places = 2 * pairs + 2 * gaps[row]
        tokens[row, places], targets[row, places], weights[row, places] = keys, values, 1
    positions = np.tile(np.arange(length, dtype=np.int32), (batch, 1))
    return MQAR(tokens, targets, weights, np.ones_like(positions), positions, gaps)


def check(length: int, pairs: int, vocab_size: int, option: str = "pairs") -> None:
    """Raises UserError if the pairs and their queries do not fit, or there are too few keys.

    Args:
      option: what whoever chose the number of pairs calls it.
    """
    if length % 2 or 4 * pairs > length or pairs < 1:
        raise UserError(
            f"mqar: {pairs} pairs in {length} tokens: needs an even length of at least 4 times the"
            " pairs, and at least 1 pair"
        )
    if pairs > vocab_size // 2 - 1:
        raise UserError(
            f"mqar: {pairs} pairs in {length} tokens of a vocabulary of {vocab_size}: it has"
            f" {vocab_size // 2 - 1} keys: {option} must be at most {vocab_size // 2 - 1}"
        )


def gap_distribution(length: int, pairs: int, power: float) -> np.ndarray:
    """p of each slot in the first draw: g^(power-1), g = 1 to (length - 2 pairs) / 2, normalised."""
    slots = np.arange(1, (length - 2 * pairs) // 2 + 1, dtype=float)
    weights = slots ** (power - 1)
    return weights / weights.sum()


def accuracy(predictions_BT: np.ndarray, batch: MQAR) -> float:
    """Share of queries whose predicted next token is their value."""
    right = (predictions_BT == batch.targets) * batch.loss_weights
    return float(right.sum() / batch.loss_weights.sum())


@dataclasses.dataclass(frozen=True)
class MQARTask:
    """The registered task, over the ids of the model's vocabulary."""

    name: str = "mqar"
    help: str = "multi-query associative recall"
    definition: str = (
        "`--pairs` pairs (a 16th of the length by default) over the ids of the model's vocabulary,"
        " random filler; share of queries whose value is the likeliest token; for runs trained on"
        " MQAR; arXiv 2312.04927"
    )
    needs: tuple[str, ...] = ()
    figure: str = "accuracy"
    title: str = "accuracy, %"

    def prepare(self, opened: OpenedModel, settings: EvalSettings) -> None:
        for length in settings.lengths:
            check(length, self._pairs(length, settings), opened.config.vocab_size, "--pairs")

    def run(
        self, opened: OpenedModel, length: int, settings: EvalSettings, prepared: None
    ) -> Record:
        """Returns `accuracy` (over queries), `samples` and `pairs`."""
        pairs, shares = self._pairs(length, settings), []
        for index in range(-(-settings.samples // settings.batch)):
            made = mqar(
                length,
                pairs,
                settings.batch,
                seed=settings.seed,
                index=index,
                vocab_size=opened.config.vocab_size,
            )
            best_BT = likeliest(
                opened.model,
                opened.params,
                made.tokens,
                made.segment_ids,
                made.positions,
                dtype=opened.dtype,
            )
            right = np.where(best_BT == NOT_FINITE, np.nan, best_BT == made.targets)
            right = np.where(made.loss_weights > 0, right * made.loss_weights, 0)
            shares += (right.sum(axis=1) / made.loss_weights.sum(axis=1)).tolist()
        shares = shares[: settings.samples]
        return {"accuracy": float(np.mean(shares)), "samples": len(shares), "pairs": pairs}

    def headline(self, record: Record) -> str:
        return accuracy_headline(record)

    def _pairs(self, length: int, settings: EvalSettings) -> int:
        return settings.pairs or max(length // 16, 1)


MQAR_TASK = MQARTask()

"""Tasks whose answer is text: samples are drawn, continued greedily, and matched with references."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.evals.sample import Sample
from hybridlm.evals.scoring import METRICS, complete
from hybridlm.evals.settings import EvalSettings
from hybridlm.evals.task import Record
from hybridlm.runs import OpenedModel

Drawn = dict[int, list[Sample]]  # samples by length


class Sampler(Protocol):
    """Draws samples of a task; needs no model.

    Attributes:
      name: of the task.
      tokens_to_generate: greedy tokens that an answer may have.
      metric: "all" (share of the references that the answer holds) or "any" (1 where it holds one).
    """

    name: str
    tokens_to_generate: int
    metric: str

    def sample(self, tokenizer: Tokenizer, length: int, seed: int, index: int) -> Sample: ...


@dataclasses.dataclass(frozen=True)
class Answered:
    """A task of this kind, as the registry holds it (see `hybridlm.evals.task.Task`).

    Attributes:
      sampler: gives what draws the samples, from the settings (files of questions are there).
      repeats: samples drawn for each of `settings.samples`.
      until: text at which an answer ends; None for its last token.
    """

    name: str
    help: str
    definition: str
    sampler: Callable[[EvalSettings], Sampler]
    needs: tuple[str, ...] = ()
    repeats: int = 1
    until: str | None = None
    figure: str = "accuracy"
    title: str = "accuracy, %"

    def prepare(self, opened: OpenedModel, settings: EvalSettings) -> Drawn:
        """Every sample, so that a length too short is known at once."""
        sampler, count = self.sampler(settings), settings.samples * self.repeats
        return {
            length: [
                sampler.sample(opened.tokenizer, length, settings.seed, i) for i in range(count)
            ]
            for length in settings.lengths
        }

    def run(
        self, opened: OpenedModel, length: int, settings: EvalSettings, prepared: Drawn
    ) -> Record:
        """`accuracy`, `samples`, `by_depth` (where a sample has one needle) and `answers`."""
        samples, metric = prepared[length], METRICS[self.sampler(settings).metric]
        texts = complete(
            opened.model,
            opened.params,
            opened.tokenizer,
            samples,
            batch=settings.batch,
            dtype=opened.dtype,
        )
        if self.until is not None:
            texts = [text.split(self.until)[0] for text in texts]
        scores = [metric(text, s.references) for text, s in zip(texts, samples)]
        answers = [
            {
                "index": s.index,
                "depths": list(s.depths),
                "references": list(s.references),
                "answer": text,
                "score": score,
            }
            for s, text, score in zip(samples, texts, scores)
        ]
        return {
            "accuracy": float(np.mean(scores)),
            "samples": len(samples),
            "by_depth": _by_depth(samples, scores),
            "answers": answers,
        }

    def headline(self, record: Record) -> str:
        return accuracy_headline(record)


def accuracy_headline(record: Record) -> str:
    """Of any record with `accuracy` and `samples`."""
    return f"{100 * record['accuracy']:.1f}% of {record['samples']} samples"


def _by_depth(samples: Sequence[Sample], scores: Sequence[float]) -> list[Record]:
    """Accuracy at each depth, where every sample has one needle."""
    found: dict[float, list[float]] = {}
    if all(len(s.depths) == 1 for s in samples):
        for s, score in zip(samples, scores):
            found.setdefault(float(s.depths[0]), []).append(score)
    return [
        {"depth": depth, "accuracy": float(np.mean(found[depth])), "samples": len(found[depth])}
        for depth in sorted(found)
    ]

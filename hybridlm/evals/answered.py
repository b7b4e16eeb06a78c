"""Tasks whose answer is text: each prompt is continued greedily and matched with references."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.evals.sample import Sample
from hybridlm.evals.scoring import METRICS, complete
from hybridlm.evals.settings import EvalSettings
from hybridlm.evals.task import Record
from hybridlm.runs import OpenedModel

SamplesByLength = dict[int, list[Sample]]


class Sampler(Protocol):
    """Draws samples of a task; needs no model.

    Attributes:
      name: the task's name.
      tokens_to_generate: maximum number of tokens of an answer.
      metric: "all" (share of the references that the answer contains) or "any" (1 if it contains
        any reference).
    """

    name: str
    tokens_to_generate: int
    metric: str

    def sample(self, tokenizer: Tokenizer, length: int, seed: int, index: int) -> Sample: ...


@dataclasses.dataclass(frozen=True)
class Answered:
    """A registered task with text answers (see `hybridlm.evals.task.Task`).

    Attributes:
      sampler: makes the sampler from the settings, which name the files of questions.
      repeats: samples drawn for each of `settings.samples`.
      until: an answer is cut at this text; None keeps all generated tokens.
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

    def prepare(self, opened: OpenedModel, settings: EvalSettings) -> SamplesByLength:
        """Draws all samples, so that a length that is too short fails before any model runs."""
        sampler, count = self.sampler(settings), settings.samples * self.repeats
        return {
            length: [
                sampler.sample(opened.tokenizer, length, settings.seed, i) for i in range(count)
            ]
            for length in settings.lengths
        }

    def run(
        self, opened: OpenedModel, length: int, settings: EvalSettings, prepared: SamplesByLength
    ) -> Record:
        """Returns `accuracy`, `samples`, `by_depth` (see `_by_depth`) and `answers`.

        Where logits are not finite, an answer is None and its score NaN.
        """
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
            texts = [text and text.split(self.until)[0] for text in texts]
        scores = [
            math.nan if text is None else metric(text, s.references)
            for text, s in zip(texts, samples)
        ]
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
    """The headline of a record with `accuracy` and `samples`."""
    return f"{100 * record['accuracy']:.1f}% of {record['samples']} samples"


def _by_depth(samples: Sequence[Sample], scores: Sequence[float]) -> list[Record]:
    """Accuracy at each depth; empty unless every sample has one needle."""
    found: dict[float, list[float]] = {}
    if all(len(s.depths) == 1 for s in samples):
        for s, score in zip(samples, scores):
            found.setdefault(float(s.depths[0]), []).append(score)
    return [
        {"depth": depth, "accuracy": float(np.mean(found[depth])), "samples": len(found[depth])}
        for depth in sorted(found)
    ]

"""The held-out answers of a run that learns answers: how many greedy decoding gives exactly."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hybridlm.data.loss_mask import LossMask
from hybridlm.data.store import Split, loss_mask_of
from hybridlm.errors import UserError
from hybridlm.evals.answered import accuracy_headline
from hybridlm.evals.heldout import open_heldout
from hybridlm.evals.scoring import continuation_likelihoods
from hybridlm.evals.settings import EvalSettings
from hybridlm.evals.task import Record
from hybridlm.runs import OpenedModel


class Turn(NamedTuple):
    """An answer and all that stands before it in its document, as tokens, int32 (tokens,)."""

    prompt: np.ndarray
    answer: np.ndarray


def turns(split: Split, mask: LossMask) -> Iterator[Turn]:
    """The answers of a split, in order; an answer ends with the token that ends it."""
    offsets = split.document_offsets()
    for start, stop in zip(offsets.tolist(), offsets[1:].tolist()):
        tokens, counts = split.read(start, stop)[0], mask.read(start, stop)
        edges = np.flatnonzero(np.diff(counts, prepend=False, append=False))
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist()):
            yield Turn(tokens[:first], tokens[first:end])


@dataclasses.dataclass(frozen=True)
class Answers:
    """The registered task (see `hybridlm.evals.task.Task`)."""

    name: str = "answers"
    help: str = "held-out answers given exactly"
    definition: str = (
        "share of the first `--samples` answers in the held-out prompts and chats of a run that greedy"
        " decoding gives token for token, with the token that ends them, after the true text before"
        " them; what is longer than the length is left out and counted; `hybridlm/evals/answers.py`"
    )
    needs: tuple[str, ...] = ()
    figure: str = "accuracy"
    title: str = "accuracy, %"

    def prepare(
        self, opened: OpenedModel, settings: EvalSettings
    ) -> dict[int, tuple[list[Turn], int]]:
        """For each length, the answers that fit it, and the number of those that do not."""
        prepared = {}
        for length in settings.lengths:
            splits = open_heldout(opened, length, self.name).heldout_splits.values()
            masks = [(s, mask) for s in splits if (mask := loss_mask_of(s)) is not None]
            if not masks:
                raise UserError(
                    f'{self.name} needs a run with a source of kind "prompts" or "chat", and'
                    f" {opened.path} has none"
                )
            found = itertools.chain.from_iterable(itertools.starmap(turns, masks))
            found = list(itertools.islice(found, settings.samples))
            kept = [t for t in found if len(t.prompt) + len(t.answer) <= length]
            if not kept:
                raise UserError(f"{self.name}: no answer fits {length:,} tokens: take more")
            prepared[length] = kept, len(found) - len(kept)
        return prepared

    def run(
        self,
        opened: OpenedModel,
        length: int,
        settings: EvalSettings,
        prepared: dict[int, tuple[list[Turn], int]],
    ) -> Record:
        """Returns `accuracy`, `samples`, `too_long` (a number) and `answers`."""
        kept, too_long = prepared[length]
        # Greedy decoding gives an answer exactly if each of its tokens is the likeliest after the
        # true ones before it, so that one forward pass tells.
        found = continuation_likelihoods(
            opened.model, opened.params, kept, batch=settings.batch, dtype=opened.dtype
        )
        answers = [
            {
                "references": [opened.tokenizer.decode(turn.answer)],
                "log_prob": likelihood.log_prob,
                "score": float(likelihood.greedy)
                if math.isfinite(likelihood.log_prob)
                else math.nan,
            }
            for turn, likelihood in zip(kept, found)
        ]
        return {
            "accuracy": float(np.mean([answer["score"] for answer in answers])),
            "samples": len(kept),
            "too_long": too_long,
            "answers": answers,
        }

    def headline(self, record: Record) -> str:
        return accuracy_headline(record)


ANSWERS = Answers()

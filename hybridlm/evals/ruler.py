"""RULER (arXiv 2404.06654): its thirteen tasks, made natively, at any length, for any tokenizer.

    sample = ruler.tasks()["niah_single_1"].sample(tokenizer, length=4096, seed=0, index=7)

A sample is a function of (task, length, seed, index) and the tokenizer. Prompt and answer together
take at most `length` tokens. See `ruler_niah`, `ruler_lists` and `ruler_qa` for the parameters.
"""

import dataclasses
import pathlib
from typing import Protocol

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.evals import ruler_lists, ruler_niah, ruler_qa
from hybridlm.evals.sample import Sample

NAMES = tuple(
    task.name for task in (*ruler_niah.TASKS, *ruler_lists.TASKS, *ruler_qa.TASKS)
)  # in RULER's order


class Task(Protocol):
    """What a task offers.

    Attributes:
      name: as in `NAMES`.
      tokens_to_generate: greedy tokens that an answer may have.
      metric: "all" (share of the references that the answer holds) or "any" (1 where it holds one).
    """

    name: str
    tokens_to_generate: int
    metric: str

    def sample(self, tokenizer: Tokenizer, length: int, seed: int, index: int) -> Sample: ...


def tasks(
    squad: pathlib.Path | None = None, hotpotqa: pathlib.Path | None = None
) -> dict[str, Task]:
    """The thirteen tasks by name; qa_1 and qa_2 on these files, or on our own questions."""
    qa = {"qa_1": squad, "qa_2": hotpotqa}
    found = [*ruler_niah.TASKS, *ruler_lists.TASKS]
    found += [dataclasses.replace(task, path=qa[task.name]) for task in ruler_qa.TASKS]
    return {task.name: task for task in found}

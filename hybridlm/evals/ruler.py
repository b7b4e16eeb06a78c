"""RULER's thirteen tasks (arXiv 2404.06654), generated at any length for any tokenizer.

    sample = ruler.tasks()["niah_single_1"].sample(tokenizer, length=4096, seed=0, index=7)

A sample depends on (task, length, seed, index) and the tokenizer alone. Prompt and answer together
have at most `length` tokens. See `ruler_niah`, `ruler_lists` and `ruler_qa` for the parameters.
"""

import dataclasses
import pathlib

from hybridlm.evals import ruler_lists, ruler_niah, ruler_qa
from hybridlm.evals.answered import Answered, Sampler

_SAMPLERS = (*ruler_niah.TASKS, *ruler_lists.TASKS, *ruler_qa.TASKS)
NAMES = tuple(task.name for task in _SAMPLERS)  # in RULER's order


def tasks(
    squad: pathlib.Path | None = None, hotpotqa: pathlib.Path | None = None
) -> dict[str, Sampler]:
    """The thirteen tasks by name; without a file, qa_1 and qa_2 use our own questions."""
    qa = {"qa_1": squad, "qa_2": hotpotqa}
    found = [*ruler_niah.TASKS, *ruler_lists.TASKS]
    found += [dataclasses.replace(task, path=qa[task.name]) for task in ruler_qa.TASKS]
    return {task.name: task for task in found}


EVALUATIONS = tuple(
    Answered(
        task.name,
        task.help,
        task.definition,
        lambda settings, name=task.name: tasks(settings.squad, settings.hotpotqa)[name],
    )
    for task in _SAMPLERS
)

"""Evaluations of a model: the tasks that are asked for, at each length, as records."""

import dataclasses
from collections.abc import Callable

from hybridlm.evals.extrapolation import extrapolated
from hybridlm.evals.registry import TASKS, chosen_tasks
from hybridlm.evals.settings import EvalSettings, Extrapolation
from hybridlm.evals.task import Record
from hybridlm.models.params import Model
from hybridlm.runs import OpenedModel


def run_suite(
    opened: OpenedModel,
    settings: EvalSettings,
    report: Callable[[str], None] = lambda line: None,
) -> list[Record]:
    """Evaluates; one record for each task and length, in the order asked for.

    All that the tasks read is made before the first is run, so that a length too short is known at
    once.

    Args:
      report: takes a line for each record.

    Returns:
      Records with `task`, `length` and what the task's `run` gives.

    Raises:
      UserError: for an unknown task, where a task does not fit a length, or data is missing.
    """
    tasks = chosen_tasks(settings)
    opened = _extrapolated(opened, settings)
    prepared = [task.prepare(opened, settings) for task in tasks]
    records = []
    for task, made in zip(tasks, prepared):
        for length in settings.lengths:
            record = task.run(opened, length, settings, made)
            records.append({"task": task.name, "length": length, **record})
            report(headline(records[-1]))
    return records


def headline(record: Record) -> str:
    """A record's main figure in a line."""
    figure = TASKS[record["task"]].headline(record)
    return f"{record['task']} at {record['length']:,} tokens: {figure}"


def _extrapolated(opened: OpenedModel, settings: EvalSettings) -> OpenedModel:
    """The model as it is, or with other positions, so that it reads further."""
    if settings.extrapolation == Extrapolation():
        return opened
    changed = extrapolated(opened.config, settings.extrapolation, opened.length)
    return dataclasses.replace(opened, model=Model.of(changed))

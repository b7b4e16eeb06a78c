"""Runs the chosen evaluation tasks on a model, at each length."""

import dataclasses
import math
from collections.abc import Callable

from hybridlm.evals.extrapolation import extrapolated
from hybridlm.evals.registry import TASKS, chosen_tasks
from hybridlm.evals.scoring import NOT_FINITE_SENTENCE
from hybridlm.evals.settings import EvalSettings, Extrapolation
from hybridlm.evals.task import Record
from hybridlm.models.params import Model
from hybridlm.progress import doing
from hybridlm.runs import OpenedModel


def run_suite(
    opened: OpenedModel,
    settings: EvalSettings,
    report: Callable[[str], None] = lambda line: None,
) -> list[Record]:
    """Runs each task of the settings at each length, in the order of the settings.

    Every task is prepared before the first one runs, so that a length that is too short fails
    early.

    Args:
      report: called with a line of text for each record.

    Returns:
      Records with `task`, `length` and the result of the task's `run`.

    Raises:
      UserError: if a task is unknown or does not fit a length, or data is missing.
    """
    tasks = chosen_tasks(settings)
    opened = _extrapolated(opened, settings)
    prepared = []
    for task in tasks:
        with doing(f"preparing {task.name}"):
            prepared.append(task.prepare(opened, settings))
    records = []
    for task, own in zip(tasks, prepared):
        for length in settings.lengths:
            with doing(f"{task.name} at {length:,} tokens"):
                record = task.run(opened, length, settings, own)
            records.append({"task": task.name, "length": length, **record})
            report(headline(records[-1]))
            figure = record[task.figure]
            if figure is not None and math.isnan(figure):
                report(f"{task.name} at {length:,} tokens: {NOT_FINITE_SENTENCE}")
    return records


def headline(record: Record) -> str:
    """One line with a record's task, length and main figure."""
    figure = TASKS[record["task"]].headline(record)
    return f"{record['task']} at {record['length']:,} tokens: {figure}"


def _extrapolated(opened: OpenedModel, settings: EvalSettings) -> OpenedModel:
    """The opened model with the extrapolation settings applied, if there are any."""
    if settings.extrapolation == Extrapolation():
        return opened
    changed = extrapolated(opened.config, settings.extrapolation, opened.length)
    return dataclasses.replace(opened, model=Model.of(changed))

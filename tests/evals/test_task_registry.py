"""Every task implements the protocol `Task`, and tasks are chosen by name."""

import inspect
import pathlib

import pytest

from hybridlm.errors import UserError
from hybridlm.evals import recall, ruler
from hybridlm.evals.registry import TASKS, chosen_tasks
from hybridlm.evals.settings import EvalSettings
from hybridlm.evals.task import Task


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_a_task_implements_the_protocol(task):
    for name in Task.__annotations__:
        assert hasattr(task, name), name
    for name in ("prepare", "run"):
        wanted = list(inspect.signature(getattr(Task, name)).parameters)[1:]
        assert list(inspect.signature(getattr(task, name)).parameters) == wanted
    assert task.help and task.definition and set(task.needs) <= set(vars(settings("vt")))


def settings(*tasks, **given):
    return EvalSettings(tasks, (512,), **given)


def test_the_registry_has_all_names_in_order():
    assert list(TASKS)[:3] == ["perplexity", "longppl", "needle"]
    assert set(TASKS) == {*list(TASKS)[:3], *ruler.NAMES, "mqar", *recall.NAMES, "answers"}


def test_tasks_are_chosen_in_the_order_of_the_settings():
    chosen = chosen_tasks(settings("vt", "needle"))
    assert [task.name for task in chosen] == ["vt", "needle"]
    with pytest.raises(UserError, match="fda needs --recall, folder of the recall tasks' files"):
        chosen_tasks(settings("vt", "fda"))
    assert chosen_tasks(settings("fda", recall=pathlib.Path("x")))
    with pytest.raises(UserError, match="--tasks 'niah_singel_1' is unknown: did you mean"):
        chosen_tasks(settings("niah_singel_1"))

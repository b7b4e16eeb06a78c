"""All evaluation tasks by their names in `--tasks`. A new task is a file and a line here."""

from hybridlm.errors import UserError
from hybridlm.evals import recall, ruler
from hybridlm.evals.answers import ANSWERS
from hybridlm.evals.longppl import LONGPPL
from hybridlm.evals.mqar import MQAR_TASK
from hybridlm.evals.needle import NEEDLE
from hybridlm.evals.perplexity import PERPLEXITY
from hybridlm.evals.settings import EvalSettings
from hybridlm.evals.task import Task
from hybridlm.settings.describe import summary_and_meanings
from hybridlm.settings.registry import by_name, choose

TASKS: dict[str, Task] = by_name(
    [
        PERPLEXITY,
        LONGPPL,
        NEEDLE,
        *ruler.EVALUATIONS,
        MQAR_TASK,
        *recall.EVALUATIONS,
        ANSWERS,
    ]
)


def chosen_tasks(settings: EvalSettings) -> list[Task]:
    """The tasks that the settings name, in that order.

    Raises:
      UserError: if a name is unknown, or a setting that a task needs is missing.
    """
    tasks = choose(TASKS, settings.tasks, "tasks")
    for task in tasks:
        for name in task.needs:
            if getattr(settings, name) is None:
                raise UserError(f"{task.name} needs --{name}, {_meaning(name)}")
    return tasks


def _meaning(name: str) -> str:
    return summary_and_meanings(EvalSettings)[1][name].removesuffix(".")

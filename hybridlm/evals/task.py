"""The interface of an evaluation task: the suite, the help and the documentation use it."""

from typing import Any, Protocol

from hybridlm.evals.settings import EvalSettings
from hybridlm.runs import OpenedModel

Record = dict[str, Any]


class Task(Protocol):
    """An evaluation of a model at a length.

    Attributes:
      name: its name in `--tasks`.
      help: one line that says what the task measures.
      definition: the exact definition and its source.
      needs: fields of `EvalSettings` that must be set.
      figure: key of a record's main figure.
      title: title of that figure in tables.
    """

    name: str
    help: str
    definition: str
    needs: tuple[str, ...]
    figure: str
    title: str

    def prepare(self, opened: OpenedModel, settings: EvalSettings) -> Any:
        """Makes the samples, data and models that `run` needs, for all lengths; runs no model.

        Raises:
          UserError: if the task does not fit a length, or data is missing.
        """

    def run(
        self, opened: OpenedModel, length: int, settings: EvalSettings, prepared: Any
    ) -> Record:
        """Evaluates at one length; `prepared` is the result of `prepare`."""

    def headline(self, record: Record) -> str:
        """A record's main figure as text."""

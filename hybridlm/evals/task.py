"""What an evaluation offers to the suite, to help and to the documentation."""

from typing import Any, Protocol

from hybridlm.evals.settings import EvalSettings
from hybridlm.runs import OpenedModel

Record = dict[str, Any]


class Task(Protocol):
    """An evaluation of a model at a length.

    Attributes:
      name: as `--tasks` takes it.
      help: what it measures, in a line.
      definition: how exactly, and the source.
      needs: fields of `EvalSettings` that must be given.
      figure: key of a record's main figure.
      title: of that figure in tables.
    """

    name: str
    help: str
    definition: str
    needs: tuple[str, ...]
    figure: str
    title: str

    def prepare(self, opened: OpenedModel, settings: EvalSettings) -> Any:
        """What `run` reads, for all lengths: samples, data, other models; no program is run.

        Raises:
          UserError: where the task does not fit a length, or data is missing.
        """

    def run(
        self, opened: OpenedModel, length: int, settings: EvalSettings, prepared: Any
    ) -> Record:
        """Evaluates at one length; `prepared` is what `prepare` gave."""

    def headline(self, record: Record) -> str:
        """A record's main figure in words."""

"""What a probe offers to the command, to a training run, to help and to the documentation."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from hybridlm.models.params import Model, Params
from hybridlm.probes.prompts import Prompts
from hybridlm.probes.settings import ProbeSettings
from hybridlm.probes.table import Head, Table

Reads = Literal["prompts", "texts", "classified"]


class LiveSubject(Protocol):
    """A model while it trains, and the prompts it is probed with.

    Attributes:
      options: `batch` and `dtype`, as the functions of `hybridlm.probes` take them.
    """

    model: Model
    options: dict[str, Any]

    @property
    def prompts(self) -> Prompts: ...


class Subject(LiveSubject, Protocol):
    """An opened model, and the data that probes read; each is made when first asked for.

    Attributes:
      final: parameters of the newest checkpoint.
    """

    settings: ProbeSettings
    final: Params

    @property
    def texts(self) -> Prompts:
        """Held-out documents; there is nothing to answer."""

    @property
    def classified(self) -> tuple[Prompts, np.ndarray]:
        """Prompts, and the number of each one's class."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """The retrieval heads of the newest checkpoint."""

    @property
    def restricted(self) -> list[list[int]]:
        """Groups of layers to restrict."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Receptive fields to restrict them to."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """A look inside a model, as the registry holds it.

    Attributes:
      name: as `--probes` takes it.
      help: what it looks at, in a line.
      definition: what exactly is measured, and the source.
      run: (subject, step, parameters of that step) -> tables.
      reads: what of the subject it reads; made before anything is run.
      live: of a probe that may run while a model trains, on a `LiveSubject`: from its tables to
        what the log says. None for all others.
    """

    name: str
    help: str
    definition: str
    run: Callable[[Any, int | None, Params], Iterable[Table[Any]]]
    reads: tuple[Reads, ...] = ("prompts",)
    live: Callable[[Sequence[Table[Any]]], list[str]] | None = None

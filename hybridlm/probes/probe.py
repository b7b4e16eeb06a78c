"""The interface of a probe: the command, training runs, the help and the documentation use it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from hybridlm.models.params import Model, Params
from hybridlm.probes.prompts import Prompts
from hybridlm.probes.settings import ProbeSettings
from hybridlm.probes.table import Head, Table

Reads = Literal["prompts", "texts", "classified", "repeated"]


class LiveSubject(Protocol):
    """A model during training, and the prompts that it is probed with.

    Attributes:
      options: `batch` and `dtype`, as the functions of `hybridlm.probes` take them.
    """

    model: Model
    options: dict[str, Any]

    @property
    def prompts(self) -> Prompts: ...


class Subject(LiveSubject, Protocol):
    """An opened model, and the data that probes read; each property is computed at first use.

    Attributes:
      final: parameters of the newest checkpoint.
    """

    settings: ProbeSettings
    final: Params

    @property
    def texts(self) -> Prompts:
        """Held-out documents; they have no answers."""

    @property
    def classified(self) -> tuple[Prompts, np.ndarray]:
        """Prompts, and the class index of each."""

    @property
    def repeated(self) -> Prompts:
        """Random tokens twice in a row."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """The retrieval heads of the newest checkpoint."""

    @property
    def restricted(self) -> list[list[int]]:
        """Groups of layers; receptive_field restricts one group at a time."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Receptive fields, in tokens, to restrict the layers to."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """A registered probe.

    Attributes:
      name: its name in `--probes`.
      help: one line that says what the probe measures.
      definition: the exact definition and its source.
      run: (subject, step, parameters of that step) -> tables.
      reads: the data of the subject that the probe reads; it is made before any probe runs.
      live: for a probe that may run during training, on a `LiveSubject`: maps its tables to the
        parts of a log line. None for other probes.
    """

    name: str
    help: str
    definition: str
    run: Callable[[Any, int | None, Params], Iterable[Table[Any]]]
    reads: tuple[Reads, ...] = ("prompts",)
    live: Callable[[Sequence[Table[Any]]], list[str]] | None = None

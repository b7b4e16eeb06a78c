"""Runs the chosen probes on an opened model, at one checkpoint or all."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from hybridlm.errors import UserError
from hybridlm.probes.probe import Probe
from hybridlm.probes.registry import chosen_probes
from hybridlm.probes.settings import ProbeSettings
from hybridlm.probes.subject import OpenedSubject
from hybridlm.probes.table import Record, Table
from hybridlm.progress import doing
from hybridlm.runs import OpenedModel, checkpoint
from hybridlm.runs.opened import Weights


class ProbeResult(NamedTuple):
    """The tables of one probe at one step; `step` is None if a model folder names no step."""

    probe: Probe
    step: int | None
    tables: list[Table[Any]]
    length: int
    weights: Weights = "raw"

    def records(self) -> list[Record]:
        """Lines of `probes.jsonl`; those of a moving average say so."""
        rows = (row for table in self.tables for row in table.records(self.step))
        weights = {} if self.weights == "raw" else {"weights": self.weights}
        return [{**row, "length": self.length, **weights} for row in rows]


@dataclasses.dataclass(frozen=True)
class ProbeRun:
    """Prepared probes; iterating runs them."""

    subject: OpenedSubject
    probes: list[Probe]
    steps: list[int | None]

    def __iter__(self) -> Iterator[ProbeResult]:
        opened = self.subject.opened
        for step in self.steps:
            params = opened.params
            if step != opened.step:
                params = opened.params_at(step)
            for probe in self.probes:
                with doing(
                    f"probing {probe.name}" + ("" if step is None else f" at step {step:,}")
                ):
                    tables = list(probe.run(self.subject, step, params))
                yield ProbeResult(probe, step, tables, self.subject.length, opened.weights)


def run_probes(
    opened: OpenedModel, settings: ProbeSettings, step: int | Literal["all"] | None = None
) -> ProbeRun:
    """Prepares the probes that the settings name.

    Args:
      opened: the newest checkpoint.
      step: the step to probe; "all" for every checkpoint of the run, None for the newest.

    Raises:
      UserError: if a probe or checkpoint is unknown, or the prompts do not fit the length.
    """
    probes = chosen_probes(settings)
    steps: list[int | None] = [*checkpoint.steps(opened.path)] or [opened.step]
    chosen = steps if step == "all" else [opened.step if step is None else step]
    if missing := [s for s in chosen if s not in steps]:
        listed = ", ".join(map(str, steps))
        raise UserError(f"{opened.path} holds no checkpoint of step {missing[0]}: it has {listed}")
    subject = OpenedSubject(opened, settings)
    subject.prepare(probes)
    return ProbeRun(subject, probes, chosen)

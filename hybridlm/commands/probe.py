"""`hybridlm probe`."""

import contextlib
import dataclasses
import pathlib
from typing import Any, Literal

from hybridlm.commands import shared
from hybridlm.commands.command import Command
from hybridlm.commands.shared import CompilationSettings, OutputSettings

SHOWN = 40  # printed entries of a table; probes.jsonl has all


@dataclasses.dataclass(frozen=True)
class CheckpointsSettings:
    """Which model, at which steps.

    Attributes:
      workdir: folder of a run, or a model folder.
      step: step of a checkpoint, or all; the newest by default.
      weights: the parameters of the step, or their moving average (train.ema_decay).
    """

    workdir: pathlib.Path
    step: int | Literal["all"] | None = None
    weights: Literal["raw", "ema"] = "raw"


def _run(
    where: CheckpointsSettings,
    settings: Any,
    output: OutputSettings,
    compilation: CompilationSettings,
) -> int:
    """Appends to `probes.jsonl` (a line per entry) and writes `probes.txt` (the tables)."""
    from hybridlm.probes.registry import chosen_probes
    from hybridlm.probes.suite import run_probes
    from hybridlm.probes.table import FILE
    from hybridlm.runs import open_model
    from hybridlm.runs.metrics import JsonlWriter
    from hybridlm.storage.mirror import growing_file
    from hybridlm.storage.writing import write_text

    chosen_probes(settings)  # a wrong name fails before the model is opened
    compilation.start()
    opened = open_model(where.workdir, weights=where.weights)
    probing = run_probes(opened, settings, where.step)
    out = shared.make_folder(output.out)
    parts = []
    with growing_file(out / FILE) as local, contextlib.closing(JsonlWriter(local)) as writer:
        for found in probing:
            for record in found.records():
                writer.write(record)
            at = "" if found.step is None else f"step {found.step}: "
            parts += [at + _shown(table) for table in found.tables]
            at = "" if found.step is None else f" at step {found.step:,}"
            print(f"{found.probe.name}{at} is done", flush=True)
    text = "\n\n".join(parts)
    write_text(out / "probes.txt", text + "\n")
    print(f"\n{text}\n\nwritten to {out}")
    return 0


def _shown(table: Any) -> str:
    from hybridlm.probes.table import FILE

    lines = table.text().split("\n")
    left_out = len(table) - SHOWN
    if left_out > 0:
        lines = [*lines[:-left_out], f"... and {left_out} more in {FILE}"]
    return "\n".join(lines)


def _settings() -> tuple[type, ...]:
    from hybridlm.probes.settings import ProbeSettings

    return CheckpointsSettings, ProbeSettings, OutputSettings, CompilationSettings


def _probes() -> str:
    from hybridlm.probes.registry import PROBES

    return shared.listed("probes", PROBES.values())


PROBE = Command(
    "probe",
    "measure inside a trained model, at one checkpoint or all",
    _settings,
    _run,
    notes=_probes,
)

"""The costs and progress of a sweep's runs, known before any run starts."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from hybridlm.config import to_dict
from hybridlm.errors import RunError
from hybridlm.models.accounting import train_flops_per_token
from hybridlm.models.params import Model
from hybridlm.runs.json_files import write_json
from hybridlm.settings import json_text
from hybridlm.storage.writing import writing
from hybridlm.sweep.expand import ABSENT, Sweep, SweepRun
from hybridlm.sweep.progress import RunProgress, run_progress

RECORD = "sweep.json"
_MAX_DIFFERENCES = 6  # differences of a run that a table shows


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run with its workdir, total cost and progress."""

    run: SweepRun
    workdir: pathlib.Path
    parameters: int
    tokens: int
    flops: float
    progress: RunProgress

    @property
    def finished(self) -> bool:
        return self.progress.state == "finished"


def plan_runs(sweep: Sweep, root: pathlib.Path) -> list[PlannedRun]:
    """The cost and progress of each run of `sweep`, with workdirs in `root`; uses no device.

    Raises:
      RunError: if a workdir holds a run of another config.
    """
    if root.exists() and not root.is_dir():
        raise RunError(f"--root {root} is a file: name a folder")
    costs: dict[str, tuple[int, float]] = {}  # runs of a sweep often share a model
    planned = []
    for run in sweep.runs:
        config = run.config
        key = json_text.dumps([to_dict(config.model), config.data.seq_len])
        if key not in costs:
            model = Model.of(config.model)
            costs[key] = model.count(), train_flops_per_token(model, config.data.seq_len)
        parameters, flops_per_token = costs[key]
        tokens = config.tokens_per_step * config.train.steps
        try:
            reached = run_progress(root / run.name, config)
        except RunError as error:
            message = str(error).replace("another --workdir", "another --root")
            raise RunError(f"run {run.name}: {message}") from None
        planned.append(
            PlannedRun(run, root / run.name, parameters, tokens, flops_per_token * tokens, reached)
        )
    return planned


def cost_table(sweep: Sweep, planned: Sequence[PlannedRun]) -> str:
    """A table of the state, cost and differences of each run, and the total, for a terminal."""
    head = f"{sweep.spec}: {_count(len(planned), 'run')}"
    if sweep.duplicates:
        head += f" ({_count(sweep.duplicates, 'duplicate')} left out)"
    head += "; tokens and FLOPs include padding"
    rows = [("run", "state", "parameters", "tokens", "FLOPs", "differs from the recipe in")]
    for p in planned:
        costs = (f"{p.parameters:,}", f"{p.tokens:,}", f"{p.flops:.3g}")
        rows.append((p.run.name, _state(p), *costs, differences(p.run)))
    unfinished = [p for p in planned if not p.finished]
    for name, group in (("total", planned), ("to run", unfinished)):
        if name == "total" or 0 < len(unfinished) < len(planned):
            tokens, flops = sum(p.tokens for p in group), sum(p.flops for p in group)
            rows.append((name, _count(len(group), "run"), "", f"{tokens:,}", f"{flops:.3g}", ""))
    return head + "\n\n" + align_columns(rows, right=(2, 3, 4))


def differences(run: SweepRun) -> str:
    """The differences of a run as text, e.g. "optimizer.lr 0.003 -> 0.001; ..."; kinds come first."""
    found = sorted(run.differences, key=lambda difference: not difference[0].endswith("kind"))
    texts = [f"{key} {_value(old)} -> {_value(new)}" for key, old, new in found]
    rest = len(texts) - _MAX_DIFFERENCES
    more = f" and {rest} more" if rest > 0 else ""
    return "; ".join(texts[:_MAX_DIFFERENCES]) + more or "nothing"


def align_columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of equal length as a table; aligns the columns numbered in `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_record(sweep: Sweep, planned: Sequence[PlannedRun], root: pathlib.Path) -> None:
    """Writes `sweep.json` into `root`: the settings and costs of each run.

    Raises:
      WriteError: if it cannot be written.
    """
    runs = {
        p.run.name: {
            "overrides": dict(p.run.overrides),
            "differences": {k: None if new is ABSENT else new for k, _, new in p.run.differences},
            "parameters": p.parameters,
            "tokens": p.tokens,
            "flops": p.flops,
        }
        for p in planned
    }
    with writing(f"--root {root}"):
        root.mkdir(parents=True, exist_ok=True)
    write_json(root / RECORD, {"config": sweep.spec, "runs": runs})


def _state(planned: PlannedRun) -> str:
    reached = planned.progress
    if reached.state == "new":
        return "new"
    heldout = "" if reached.heldout is None else f", {reached.heldout:.4f} nats held out"
    if planned.finished:
        return "finished" + heldout
    return f"step {reached.step} of {planned.run.config.train.steps}"


def _value(value: Any) -> str:
    return "(none)" if value is ABSENT else repr(value)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

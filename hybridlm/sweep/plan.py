"""What a sweep would run and cost, before anything of it is started."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from hybridlm.config import to_dict
from hybridlm.errors import RunError, UserError
from hybridlm.models.accounting import train_flops_per_token
from hybridlm.models.params import Model
from hybridlm.runs.json_files import write_json
from hybridlm.sweep.expand import ABSENT, Run, Sweep
from hybridlm.sweep.progress import RunProgress, progress

RECORD = "sweep.json"
_SHOWN = 6  # differences of a run, in a table


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run, what it costs in all, and how far it is."""

    run: Run
    workdir: pathlib.Path
    parameters: int
    tokens: int
    flops: float
    progress: RunProgress

    @property
    def finished(self) -> bool:
        return self.progress.state == "finished"


def plan(sweep: Sweep, root: pathlib.Path) -> list[Planned]:
    """Counts every run of `sweep`, whose workdirs lie under `root`; touches no device.

    Raises:
      RunError: where a workdir holds a run of another config.
    """
    if root.exists() and not root.is_dir():
        raise RunError(f"--root {root} is a file: name a folder")
    costs: dict[str, tuple[int, float]] = {}  # many runs of a sweep have one model
    planned = []
    for run in sweep.runs:
        config = run.config
        key = json.dumps([to_dict(config.model), config.data.seq_len])
        if key not in costs:
            model = Model.of(config.model)
            costs[key] = model.count(), train_flops_per_token(model, config.data.seq_len)
        parameters, flops_per_token = costs[key]
        tokens = config.tokens_per_step * config.train.steps
        try:
            reached = progress(root / run.name, config)
        except RunError as error:
            said = str(error).replace("another --workdir", "another --root")
            raise RunError(f"run {run.name}: {said}") from None
        planned.append(
            Planned(run, root / run.name, parameters, tokens, flops_per_token * tokens, reached)
        )
    return planned


def describe(sweep: Sweep, planned: Sequence[Planned]) -> str:
    """A table for a terminal: what each run is, costs and differs in, and the total."""
    head = f"{sweep.spec}: {_count(len(planned), 'run')}"
    if sweep.duplicates:
        head += f" ({_count(sweep.duplicates, 'duplicate')} left out)"
    rows = [("run", "state", "parameters", "tokens", "FLOPs", "differs from the recipe in")]
    for p in planned:
        costs = (f"{p.parameters:,}", f"{p.tokens:,}", f"{p.flops:.3g}")
        rows.append((p.run.name, _state(p), *costs, differences(p.run)))
    left = [p for p in planned if not p.finished]
    for name, group in (("total", planned), ("of it to run", left)):
        if name == "total" or 0 < len(left) < len(planned):
            tokens, flops = sum(p.tokens for p in group), sum(p.flops for p in group)
            rows.append((name, _count(len(group), "run"), "", f"{tokens:,}", f"{flops:.3g}", ""))
    return head + "\n\n" + aligned(rows, right=(2, 3, 4))


def differences(run: Run) -> str:
    """ "optimizer.lr 0.003 -> 0.001; ..." of a run."""
    said = [f"{key} {_value(old)} -> {_value(new)}" for key, old, new in run.differences]
    more = f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return "; ".join(said[:_SHOWN]) + more or "nothing"


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of equal length as a table; columns numbered in `right` are flushed right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def record(sweep: Sweep, planned: Sequence[Planned], root: pathlib.Path) -> None:
    """Writes `sweep.json` into `root`: what each run sets and costs, for whoever reads the runs.

    Raises:
      UserError: where `root` cannot be written.
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
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / RECORD, {"config": sweep.spec, "runs": runs})
    except OSError as error:
        raise UserError(f"--root {root} cannot be written: {error.strerror}") from None


def _state(planned: Planned) -> str:
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

"""Trains the experiment's runs, one after the other; the same command resumes them.

    python -m experiments.state_tracking.run --workdir runs/state
    python -m experiments.state_tracking.run --workdir runs/state --tasks a5 --arms rwkv7,mamba3

A run adds its line to WORKDIR/runs.jsonl when it is complete. Runs that have a line there, or one with
the same settings in results/, are skipped. An arm is compiled once for all its tasks and seeds, so all
runs of an arm come before the next arm's.
"""

import argparse
import hashlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.state_tracking.arms import (
    ARMS,
    BATCH,
    EARLY,
    HELD_OUT,
    HELD_OUT_SEED,
    LENGTH,
    SEEDS,
    SOLVED,
    SOME,
    STEADY,
    TIMES,
    Arm,
    budget,
    schedule,
)
from experiments.state_tracking.tasks import TASKS
from experiments.threads import one_thread
from hybridlm.errors import UserError, exit_code
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder

FILE = "runs.jsonl"
RESULTS = pathlib.Path(__file__).parent / "results"  # the runs that README.md shows
Row = dict[str, Any]


class Unit(NamedTuple):
    """One run."""

    task: str
    arm: str
    seed: int


def units(tasks: Sequence[str], arms: Sequence[str], seeds: int, every: bool = False) -> list[Unit]:
    """The runs in their order: by arm, then task, then seed.

    Args:
      seeds: runs of each arm and task, from 1 to the number of `SEEDS`.
      every: whether all arms run all tasks; otherwise the tasks of `SOME` have its arms only.

    Raises:
      UserError: if there are not so many seeds.
    """
    if not 1 <= seeds <= len(SEEDS):
        raise UserError(f"--seeds must be from 1 to {len(SEEDS)}, not {seeds}")
    return [
        Unit(task, arm, seed)
        for arm in arms
        for task in tasks
        if every or arm in SOME.get(task, ARMS)
        for seed in SEEDS[:seeds]
    ]


def settings(arm: Arm, task: str, steps: int) -> str:
    """A digest of what a run depends on, but for its seed and the library's defaults."""
    training = (arm.settings(), schedule(task, steps), steps, BATCH, LENGTH, TASKS[task].sizes)
    end = (SOLVED, STEADY, task in EARLY)
    parts = (training, end, (HELD_OUT, HELD_OUT_SEED, TIMES))
    return hashlib.sha256(json_text.dumps(parts).encode()).hexdigest()[:12]


def is_current(unit: Unit, row: Row, steps: int | None = None) -> bool:
    """Whether a line's run has the settings of now, with `steps` or the task's own budget."""
    if unit.task not in TASKS or unit.arm not in ARMS or unit.seed not in SEEDS:
        return False
    return row["settings"] == settings(ARMS[unit.arm], unit.task, budget(unit.task, steps))


def read(workdir: pathlib.Path) -> dict[Unit, Row]:
    """The complete runs of a workdir; a last line that was cut short is none."""
    path = workdir / FILE
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    rows = [json_text.loads(line) for line in lines]
    return {Unit(row["task"], row["arm"], row["seed"]): row for row in rows}


def add(workdir: pathlib.Path, row: Row) -> None:
    """Appends a line, after cutting off one that was cut short."""
    path = workdir / FILE
    with path.open("a+b") as file:
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        file.write(json_text.dumps(row).encode() + b"\n")


def lacking(
    workdir: pathlib.Path,
    todo: Sequence[Unit],
    steps: int | None = None,
    results: pathlib.Path | None = None,
) -> list[Unit]:
    """Those of the runs that neither the workdir nor `results` has with these settings.

    Raises:
      UserError: if the workdir has one of these runs with other settings.
    """
    done = read(workdir)
    for unit in todo:
        if unit in done and not is_current(unit, done[unit], steps):
            raise UserError(
                f"{workdir / FILE} has {unit.arm!r} on {unit.task!r} with other settings than now:"
                " remove its lines, or give another --workdir"
            )
    shown = read(results) if results else {}
    done |= {unit: row for unit, row in shown.items() if is_current(unit, row, steps)}
    return [unit for unit in todo if unit not in done]


def train(workdir: pathlib.Path, todo: Sequence[Unit], steps: int | None = None) -> Iterator[Row]:
    """Makes these runs; yields each one's line once it is written."""
    from experiments.state_tracking import runs

    make_folder(workdir)
    for unit in todo:
        arm = ARMS[unit.arm]
        found = runs.run(runs.program(arm), TASKS[unit.task], unit.seed, steps)
        digest = settings(arm, unit.task, budget(unit.task, steps))
        row = {**unit._asdict(), **found, "settings": digest}
        add(workdir, row)
        yield row


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="state_tracking", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the results")
    parser.add_argument("--tasks", default=",".join(TASKS), help="separated by commas")
    parser.add_argument("--arms", default=",".join(ARMS), help="separated by commas")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="runs of each arm and task")
    parser.add_argument("--steps", type=int, help="replaces each task's budget")
    parser.add_argument(
        "--again", action="store_true", help="also the runs that results/ has with these settings"
    )
    parser.add_argument(
        "--every", action="store_true", help="all arms on all tasks, also where arms.py has a few"
    )
    arguments = parser.parse_args(argv)
    tasks, arms = (
        list(dict.fromkeys(words.split(","))) for words in (arguments.tasks, arguments.arms)
    )
    for word, known in [(t, TASKS) for t in tasks] + [(a, ARMS) for a in arms]:
        if word not in known:
            raise UserError(f"there is no {word!r}: there are {', '.join(known)}")
    steps = arguments.steps
    if steps is not None and steps < 1:
        raise UserError(f"--steps must be at least 1, not {steps}")
    asked = units(tasks, arms, arguments.seeds, arguments.every)
    todo = lacking(arguments.workdir, asked, steps, None if arguments.again else RESULTS)
    print(f"{len(asked)} runs, {len(asked) - len(todo)} of them done", flush=True)
    if not todo:
        return 0
    one_thread()
    import jax

    folder = (arguments.workdir / "compiled").resolve()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    for count, row in enumerate(train(arguments.workdir, todo, steps), 1):
        shown = " ".join(f"{a:.2f}" for a in row["accuracy"])
        print(
            f"{row['task']}, {row['arm']}, seed {row['seed']}: {row['steps']} steps, accuracy"
            f" {shown}, {row['cpu_seconds']} s; {len(todo) - count} left",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("state_tracking", main))

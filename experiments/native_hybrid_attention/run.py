"""Trains the experiment's runs; the same command resumes them.

    python -m experiments.native_hybrid_attention.run --workdir runs/nha
    python -m experiments.native_hybrid_attention.run --workdir runs/nha --sets slide --tasks mqar --seeds 1

A run is a file of WORKDIR/runs, written when it is complete; what was stopped inside a run begins that
run again. All arms run with one seed before the next seed, so completed runs are comparable at any time.
"""

import argparse
import functools
import hashlib
import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from experiments.native_hybrid_attention.arms import (
    ARMS,
    MQAR,
    SCALES,
    SEEDS,
    SETS,
    TEXT,
    TEXT_CORPUS,
    TEXT_HELD_OUT,
    TEXT_LAST,
    Arm,
)
from experiments.state_tracking.arms import HELD_OUT, HELD_OUT_SEED, SOLVED, STEADY, TIMES
from experiments.state_tracking.tasks import TASKS
from experiments.threads import one_thread
from hybridlm.errors import UserError, exit_code
from hybridlm.runs.json_files import read_json, write_json
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder

RESULTS = pathlib.Path(__file__).parent / "results"  # the runs that README.md shows
Row = dict[str, Any]


class Unit(NamedTuple):
    """One run."""

    task: str
    arm: str
    seed: int

    def path(self, workdir: pathlib.Path) -> pathlib.Path:
        return workdir / "runs" / self.task / self.arm / f"{self.seed}.json"


def units(
    sets: Sequence[str] = tuple(SETS),
    tasks: Sequence[str] = tuple(SCALES),
    seeds: int | None = None,
) -> list[Unit]:
    """The runs in their order: seed by seed, and within a seed set by set.

    Args:
      seeds: of each arm; those of its set by default.

    Raises:
      UserError: if there are not so many seeds.
    """
    if seeds is not None and not 1 <= seeds <= len(SEEDS):
        raise UserError(f"--seeds must be from 1 to {len(SEEDS)}, not {seeds}")
    found: dict[Unit, None] = {}
    for number, seed in enumerate(SEEDS):
        for name in sets:
            if number >= (SETS[name].seeds if seeds is None else seeds):
                continue
            for arm in SETS[name].arms:
                if arm.task in tasks:
                    found.setdefault(Unit(arm.task, arm.name, seed))
    return list(found)


def settings(arm: Arm, steps: int) -> str:
    """A digest of what a run depends on, but for its seed and the library's defaults."""
    parts = [arm.settings(), arm.spans(), list(arm.scale), arm.schedule(steps), steps]
    if arm.task == MQAR:
        parts += [TASKS[MQAR].sizes, SOLVED, STEADY, HELD_OUT, HELD_OUT_SEED, TIMES]
    else:
        parts += [TEXT_CORPUS, TEXT_HELD_OUT, TEXT_LAST]
    return hashlib.sha256(json_text.dumps(parts).encode()).hexdigest()[:12]


def is_current(unit: Unit, row: Row, steps: int | None = None) -> bool:
    """Whether a row's run has the settings of now, with `steps` or the task's own number."""
    arm = ARMS.get((unit.task, unit.arm))
    return arm is not None and row["settings"] == settings(arm, steps or arm.scale.steps)


def read(workdir: pathlib.Path) -> dict[Unit, Row]:
    """The complete runs of a workdir."""
    found = {}
    for path in sorted((workdir / "runs").glob("*/*/*.json")):
        row = read_json(path)
        found[Unit(row["task"], row["arm"], row["seed"])] = row
    return found


def lacking(workdir: pathlib.Path, todo: Sequence[Unit], steps: int | None = None) -> list[Unit]:
    """Those of the runs that the workdir does not have.

    Raises:
      UserError: if it has one of them with other settings.
    """
    done = read(workdir)
    for unit in todo:
        if unit in done and not is_current(unit, done[unit], steps):
            raise UserError(
                f"{unit.path(workdir)} is a run with other settings than now: remove it, or give"
                " another --workdir"
            )
    return [unit for unit in todo if unit not in done]


def make(unit: Unit, workdir: pathlib.Path, steps: int | None = None) -> Row:
    """Makes a run, and writes its file."""
    from experiments.native_hybrid_attention import runs

    arm = ARMS[unit.task, unit.arm]
    found = runs.run(arm, unit.seed, workdir, steps)
    row = {**unit._asdict(), **found, "settings": settings(arm, steps or arm.scale.steps)}
    path = unit.path(workdir)
    make_folder(path.parent)
    write_json(path, row)
    return row


def train(
    workdir: pathlib.Path, todo: Sequence[Unit], steps: int | None = None, jobs: int = 1
) -> Iterator[Row]:
    """Makes these runs, `jobs` at once; yields each row once its file is written."""
    if todo and any(unit.task != MQAR for unit in todo):
        from experiments.native_hybrid_attention import runs

        # The text's tokens, before several processes want them.
        runs.pipeline(SCALES[TEXT].length, SCALES[TEXT].batch, 0, workdir)
    if jobs == 1:
        yield from (make(unit, workdir, steps) for unit in todo)
        return
    work = functools.partial(make, workdir=workdir, steps=steps)
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=_start, initargs=(workdir,)) as pool:
        yield from pool.imap_unordered(work, todo)


def _start(workdir: pathlib.Path) -> None:
    """One thread, one folder of compiled programs; the parent handles interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one_thread()
    import jax

    folder = (workdir / "compiled").resolve()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="nha", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--sets", default=",".join(SETS), help="separated by commas")
    parser.add_argument("--tasks", default=",".join(SCALES), help="separated by commas")
    parser.add_argument("--arms", default="", help="names, separated by commas; all by default")
    parser.add_argument("--seeds", type=int, help="runs of each arm; those of its set by default")
    parser.add_argument("--steps", type=int, help="replaces each task's steps")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at once")
    parser.add_argument("--list", action="store_true", help="print the runs, and make none")
    given = parser.parse_args(argv)
    sets, tasks, arms = (_words(text) for text in (given.sets, given.tasks, given.arms))
    names = [name for _, name in ARMS]
    for word, known in [(s, SETS) for s in sets] + [(t, SCALES) for t in tasks]:
        if word not in known:
            raise UserError(f"there is no {word!r}: there are {', '.join(known)}")
    for word in arms:
        if word not in names:
            raise UserError(f"there is no arm {word!r}: --list names them")
    for name in ("steps", "jobs"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    asked = [u for u in units(sets, tasks, given.seeds) if not arms or u.arm in arms]
    todo = lacking(given.workdir, asked, given.steps)
    if given.list:
        for unit in asked:
            print(
                f"{unit.task:<6}{unit.arm:<19} seed {unit.seed}  {'' if unit in todo else 'done'}"
            )
        return 0
    print(f"{len(asked)} runs, {len(asked) - len(todo)} of them done", flush=True)
    make_folder(given.workdir)
    if given.jobs == 1:
        _start(given.workdir)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for count, row in enumerate(train(given.workdir, todo, given.steps, given.jobs), 1):
        print(f"{_line(row)}; {len(todo) - count} left", flush=True)
    return 0


def _line(row: Row) -> str:
    figure = "accuracy_1x" if row["task"] == MQAR else "heldout"
    return (
        f"{row['task']}, {row['arm']}, seed {row['seed']}: {row['steps']} steps, {figure}"
        f" {row[figure]:.4g}, {row['cpu_seconds']} s"
    )


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word for word in text.split(",") if word))


if __name__ == "__main__":
    sys.exit(exit_code("nha", main))

"""Trains the experiment's runs, several at once; the same command resumes them.

    python -m experiments.large_window_laziness.run --workdir runs/laziness --sets core
    python -m experiments.large_window_laziness.run --workdir runs/laziness --arms w4-nope,gdn-rope
    python -m experiments.large_window_laziness.run --workdir runs/laziness --sets cures --missing
    python -m experiments.large_window_laziness.run --workdir runs/laziness --sets far --seeds 10
    python -m experiments.large_window_laziness.run --workdir runs/laziness --sets core --ends

All arms run with one seed before the next seed, so completed runs are comparable at any time. Runs of
"long" go on with those of "core" where these are complete in the same folder. Each run is a
process's own, so that it stops by itself.
"""

import argparse
import datetime
import functools
import multiprocessing
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence

from experiments.large_window_laziness.arms import ARMS, SCALES, SETS, seeds_of
from experiments.threads import one_thread
from hybridlm.errors import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 2, with one sentence on stderr, for an unknown arm."""
    parser = argparse.ArgumentParser(prog="laziness", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs")
    parser.add_argument("--scale", choices=tuple(SCALES), default="main", help="of the task")
    parser.add_argument(
        "--sets", default="", help="separated by commas: " + ", ".join(SETS["main"])
    )
    parser.add_argument("--arms", default="", help="names, separated by commas")
    parser.add_argument("--seeds", type=int, help="runs of each arm; by default those of its set")
    parser.add_argument("--steps", type=int, help="replaces each arm's own budget")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once")
    parser.add_argument("--list", action="store_true", help="print the runs and their progress")
    parser.add_argument(
        "--missing", action="store_true", help="leave out the runs that the committed tables have"
    )
    parser.add_argument(
        "--ends",
        action="store_true",
        help="train nothing: measure the ends of complete runs again, from their parameters, where"
        " earlier code measured them",
    )
    arguments = parser.parse_args(argv)
    sets, arms = SETS[arguments.scale], ARMS[arguments.scale]
    unknown = [s for s in _words(arguments.sets) if s not in sets]
    unknown += [a for a in _words(arguments.arms) if a not in arms]
    if unknown:
        print(
            f"laziness: there is no {unknown[0]!r}; sets: {', '.join(sets)}; arms: {', '.join(arms)}",
            file=sys.stderr,
        )
        return 2
    count = arguments.seeds
    seeds = {arm.name: seeds_of(s, count) for s in _words(arguments.sets) for arm in sets[s]}
    for name in _words(arguments.arms):
        (own,) = {seeds_of(s, count) for s in sets if name in {arm.name for arm in sets[s]}}
        seeds.setdefault(name, own)
    rounds = range(max(map(len, seeds.values()), default=0))
    units = [(n, own[i]) for i in rounds for n, own in seeds.items() if i < len(own)]
    if not units:
        print("laziness: nothing to run: give --sets or --arms", file=sys.stderr)
        return 2
    if arguments.missing:
        made = _committed(arguments.scale)
        print(f"{sum(unit in made for unit in units)} runs are in the committed tables", flush=True)
        units = [unit for unit in units if unit not in made]
    if arguments.list:
        for name, seed in units:
            folder = arguments.workdir / arguments.scale / name / str(seed)
            print(f"{name:<20} seed {seed}: {_progress(folder)}")
        return 0
    jobs = max(arguments.jobs, 1)
    if arguments.ends:
        return _measure_ends(arguments.scale, units, arguments.workdir, jobs)
    return _train(arguments.scale, units, arguments.workdir, arguments.steps, jobs)


def _committed(scale: str) -> set[tuple[str, int]]:
    """The arm and seed of each run of the committed tables."""
    from experiments.large_window_laziness import claims, tables

    path = claims.RESULTS / scale / "runs.tsv"
    return {tables.run_key(row) for row in tables.read(path)} if path.exists() else set()


def _train(
    scale: str, units: list[tuple[str, int]], workdir: pathlib.Path, steps: int | None, jobs: int
) -> int:
    from experiments.large_window_laziness.runs import check_settings

    for name, seed in units:
        arm = ARMS[scale][name]
        budget = arm.steps if steps is None else steps
        check_settings(arm, workdir / scale / name / str(seed), budget)
    left = [unit for unit in units if not _done(workdir / scale, unit)]
    print(f"{len(units)} runs, {len(units) - len(left)} of them done; {jobs} at once", flush=True)
    return _each(left, functools.partial(_one, scale=scale, workdir=workdir, steps=steps), jobs)


def _measure_ends(
    scale: str, units: list[tuple[str, int]], workdir: pathlib.Path, jobs: int
) -> int:
    from experiments.large_window_laziness.runs import check_settings, has_end
    from hybridlm.settings import json_text

    complete = [unit for unit in units if _done(workdir / scale, unit)]
    left = []
    for name, seed in complete:
        folder = workdir / scale / name / str(seed)
        check_settings(ARMS[scale][name], folder)
        if not has_end(json_text.loads((folder / "done.json").read_text())):
            left.append((name, seed))
    print(f"{len(left)} of {len(complete)} complete runs need a new end", flush=True)
    return _each(left, functools.partial(_one_end, scale=scale, workdir=workdir), jobs)


def _each(left: list[tuple[str, int]], work: Callable[..., None], jobs: int) -> int:
    """Does the work for each run in processes of one thread; returns the command's code."""
    if not left:
        return 0
    one_thread()
    signal.signal(signal.SIGTERM, _interrupt)
    start, context = time.perf_counter(), multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=_quiet) as pool:
        try:
            for number, _ in enumerate(pool.imap_unordered(work, left), start=1):
                spent = time.perf_counter() - start
                rest = datetime.timedelta(seconds=round(spent / number * (len(left) - number)))
                print(f"{number} of {len(left)} runs done, about {rest} left", flush=True)
        except KeyboardInterrupt:
            pool.terminate()
            print("stopped; the same command resumes the runs", file=sys.stderr)
            return 130
    return 0


def _one(unit: tuple[str, int], scale: str, workdir: pathlib.Path, steps: int | None) -> None:
    from experiments.large_window_laziness.runs import run

    _prepare(workdir)
    name, seed = unit
    parent = os.getppid()

    def log(line: str) -> None:
        print(line, flush=True)
        if os.getppid() != parent:  # parent killed: another command may resume this run
            os._exit(1)

    run(ARMS[scale][name], seed, workdir / scale / name / str(seed), steps, log)


def _one_end(unit: tuple[str, int], scale: str, workdir: pathlib.Path) -> None:
    from experiments.large_window_laziness.runs import measure_end

    _prepare(workdir)
    name, seed = unit
    measure_end(ARMS[scale][name], workdir / scale / name / str(seed))
    print(f"{name} seed {seed}: its end is measured", flush=True)


def _prepare(workdir: pathlib.Path) -> None:
    """Sets up a worker: compiled programs are kept between processes."""
    import jax

    from hybridlm.train import host_memory

    host_memory.keep_large_buffers()
    jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _quiet() -> None:
    """Makes a worker ignore interrupts: the parent handles them and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _done(workdir: pathlib.Path, unit: tuple[str, int]) -> bool:
    name, seed = unit
    return (workdir / name / str(seed) / "done.json").exists()


def _progress(folder: pathlib.Path) -> str:
    if (folder / "done.json").exists():
        return "done"
    if not (folder / "curve.jsonl").exists():
        return "not begun"
    from hybridlm.settings import json_text

    last = json_text.loads((folder / "curve.jsonl").read_text().splitlines()[-1])
    return f"at step {last['step']}, accuracy by distance {last['accuracy']}"


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    sys.exit(exit_code("laziness", main))

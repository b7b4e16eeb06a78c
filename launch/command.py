"""`hybridlm sweep`: show what would run and cost, ask, then hand it to a launcher."""

import pathlib
import sys

from hybridlm import sweep as sweeps
from launch.job import Job
from launch.targets import launcher


def run_sweep(
    *,
    config: str,
    root: pathlib.Path,
    to: str,
    site: pathlib.Path | None,
    parallel: int | None,
    dry_run: bool,
    yes: bool,
    overrides: list[tuple[str, str]],
) -> int:
    """Expands the sweep of recipe `config`, prints it, and submits what is not finished.

    Args:
      config: "file.py" or "file.py:argument".
      root: the runs' folders lie in it.
      to, site, parallel: as `launch.targets.launcher` takes them.
      dry_run: print only.
      yes: do not ask a person at a terminal.
      overrides: (dotted key, text) pairs for every run.

    Returns:
      the exit code: 0, 1 where runs failed, or 75 where they were stopped and can go on.

    Raises:
      UserError: one sentence; nothing was started then.
    """
    where = launcher(to, site, parallel)
    sweep = sweeps.expand(config, overrides)
    planned = sweeps.plan(sweep, root)
    print(sweeps.describe(sweep, planned))
    jobs = [Job(p, config) for p in planned if not p.finished]
    if not jobs:
        print(f"\nnothing to do: every run in {root} is finished")
        return 0
    print(f"\n{where.preview(jobs, root)}", flush=True)
    if dry_run:
        return 0
    if where.confirms and not yes and sys.stdin.isatty() and not _agreed(len(jobs), to):
        print("nothing was submitted")
        return 0
    sweeps.record(sweep, planned, root)
    print()
    return where.submit(jobs, root)


def _agreed(runs: int, target: str) -> bool:
    answer = input(f"\nsubmit {runs} run{'' if runs == 1 else 's'} to {target}? [y/N] ")
    return answer.strip().lower() in ("y", "yes")

"""`hybridlm sweep`: shows the runs and their costs, asks for confirmation, and launches them."""

import pathlib
import sys

from hybridlm import sweep as sweeps
from hybridlm.progress import doing
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
    """Expands the sweep of recipe `config`, prints it, and submits the unfinished runs.

    Args:
      config: "file.py" or "file.py:argument".
      root: the folder of the runs' folders.
      to, site, parallel: arguments of `launch.targets.launcher`.
      dry_run: only print.
      yes: do not ask for confirmation.
      overrides: (dotted key, text) pairs for every run.

    Returns:
      The exit code: 0, 1 if runs failed, or 75 if they were stopped and can be continued.

    Raises:
      UserError: if an argument or the sweep is invalid; no run was started.
    """
    target = launcher(to, site, parallel)
    with doing(f"reading the runs of {config}"):
        sweep = sweeps.expand(config, overrides)
    with doing("counting what the runs cost and what is done"):
        planned = sweeps.plan_runs(sweep, root)
    print(sweeps.cost_table(sweep, planned))
    jobs = [Job(p, config) for p in planned if not p.finished]
    if not jobs:
        print(f"\nnothing to do: every run in {root} is finished")
        return 0
    print(f"\n{target.preview(jobs, root)}", flush=True)
    if dry_run:
        return 0
    if target.confirms and not yes and sys.stdin.isatty() and not _confirmed(len(jobs), to):
        print("nothing was submitted")
        return 0
    sweeps.write_record(sweep, planned, root)
    print()
    return target.submit(jobs, root)


def _confirmed(runs: int, target: str) -> bool:
    answer = input(f"\nsubmit {runs} run{'' if runs == 1 else 's'} to {target}? [y/N] ")
    return answer.strip().lower() in ("y", "yes")

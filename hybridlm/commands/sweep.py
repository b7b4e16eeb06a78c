"""`hybridlm sweep`."""

import pathlib

from hybridlm.commands.command import Command, Overrides
from hybridlm.settings.bounds import PositiveInt, settings


@settings
class SweepSettings:
    """Which runs, and what starts them.

    Attributes:
      config: recipe: file.py or file.py:argument.
      root: folder of the runs' folders.
      to: target: local, slurm, xpk or sky.
      site: TOML file with a table of settings for each target.
      parallel: number of concurrent runs (local: 1 by default).
      dry_run: only show the runs and their cost.
      yes: submit without asking for confirmation.
    """

    config: str
    root: pathlib.Path
    to: str = "local"
    site: pathlib.Path | None = None
    parallel: PositiveInt | None = None
    dry_run: bool = False
    yes: bool = False


def _run(chosen: SweepSettings, overrides: Overrides) -> int:
    # The only import of `launch` from a lower package; it runs only with this command.
    from launch.command import run_sweep

    return run_sweep(**vars(chosen), overrides=overrides)


SWEEP = Command(
    "sweep",
    "train every run that the sweep() of a config yields",
    lambda: (SweepSettings,),
    _run,
    takes_overrides=True,
    notes=lambda: (
        "A setting of every run: --config.a.b=value. Exit code 75: stopped; the same command continues."
    ),
)

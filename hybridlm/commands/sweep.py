"""`hybridlm sweep`."""

import pathlib

from hybridlm.commands.command import Command, Overrides
from hybridlm.settings.bounds import PositiveInt, settings


@settings
class SweepSettings:
    """Which runs, and who starts them.

    Attributes:
      config: recipe: file.py or file.py:argument.
      root: folder of the runs' folders.
      to: local, slurm, xpk or sky.
      site: TOML file with a table of settings for each target.
      parallel: runs at one time (local: 1 by default).
      dry_run: only show the runs and their cost.
      yes: submit without being asked.
    """

    config: str
    root: pathlib.Path
    to: str = "local"
    site: pathlib.Path | None = None
    parallel: PositiveInt | None = None
    dry_run: bool = False
    yes: bool = False


def _run(chosen: SweepSettings, overrides: Overrides) -> int:
    # The one place below `launch` that knows it: imported when this command is run.
    from launch.command import run_sweep

    return run_sweep(**vars(chosen), overrides=overrides)


SWEEP = Command(
    "sweep",
    "train every run that the sweep() of a config yields",
    lambda: (SweepSettings,),
    _run,
    takes_overrides=True,
    notes=lambda: (
        "A setting of every run: --config.a.b=value. Exit code 75: stopped, the same command goes on."
    ),
)

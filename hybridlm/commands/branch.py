"""`hybridlm branch`: a new run that goes on from a step of another and decays its learning rate."""

import pathlib

from hybridlm.commands.command import Command, Overrides
from hybridlm.commands.shared import StartSettings
from hybridlm.settings.bounds import NonNegativeInt, PositiveInt, settings


@settings
class BranchSettings:
    """Which run, and how the branch goes on.

    Attributes:
      base: folder of the run.
      decay: optimizer steps of the branch, over which the learning rate decays.
      step: step of the checkpoint where the branch begins; the newest by default.
    """

    base: pathlib.Path
    decay: PositiveInt
    step: NonNegativeInt | None = None


def _run(chosen: BranchSettings, where: StartSettings, overrides: Overrides) -> int:
    from hybridlm.commands.start import start
    from hybridlm.config.branch import branch

    config = branch(chosen.base, chosen.decay, chosen.step, where.workdir, overrides)
    optimizer, begin = config.optimizer, config.train.steps - chosen.decay
    print(
        f"branch of {chosen.base} at step {begin}: the learning rate decays from {optimizer.lr:.4g}"
        f" to {optimizer.lr * optimizer.final_lr_fraction:.4g} over {chosen.decay} steps"
    )
    return start(config, where, "branch")


BRANCH = Command(
    "branch",
    "begin a run from a step of another, and decay its learning rate",
    lambda: (BranchSettings, StartSettings),
    _run,
    positional=("base",),
    takes_overrides=True,
    notes=lambda: (
        "Any setting that differs from the base's: --config.a.b=value. The same command resumes."
    ),
)

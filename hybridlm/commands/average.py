"""`hybridlm average`."""

import pathlib
from typing import Annotated

from hybridlm.commands.command import Command
from hybridlm.errors import UserError
from hybridlm.settings.bounds import AtLeast, NonNegativeInt, settings


@settings
class AverageSettings:
    """Which checkpoints.

    Attributes:
      workdir: folder of a run.
      out: new folder for the model.
      last: average this many of the newest checkpoints.
      steps: or average the checkpoints of these steps.
    """

    workdir: pathlib.Path
    out: pathlib.Path
    last: Annotated[int, AtLeast(2)] | None = None
    steps: tuple[NonNegativeInt, ...] = ()


def _run(settings: AverageSettings) -> int:
    """Writes a model folder, which `eval`, `generate` and `probe` take in place of a run."""
    from hybridlm.runs import average_checkpoints, save_model

    if (settings.last is None) == (not settings.steps):
        raise UserError("average needs either --last N or --steps N,N,...")
    if settings.last is None and len(set(settings.steps)) < 2:
        raise UserError("--steps must name two checkpoints at least")
    opened = average_checkpoints(settings.workdir, last=settings.last, steps=settings.steps)
    save_model(opened, settings.out, data=True)
    steps = ", ".join(map(str, opened.averaged))
    print(f"the average of steps {steps} is written to {settings.out}")
    return 0


AVERAGE = Command(
    "average",
    "average the parameters of several checkpoints of a run",
    lambda: (AverageSettings,),
    _run,
    positional=("workdir",),
)

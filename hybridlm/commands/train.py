"""`hybridlm train`."""

import dataclasses

from hybridlm.commands.command import Command, Overrides
from hybridlm.commands.shared import StartSettings
from hybridlm.storage.address import split_step


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Which run.

    Attributes:
      config: recipe: file.py or file.py:argument.
      init_from: begin with the parameters of this run or model folder: PATH or PATH@STEP.
    """

    config: str
    init_from: str | None = None


def _run(settings: TrainSettings, where: StartSettings, overrides: Overrides) -> int:
    from hybridlm import config as configs
    from hybridlm.commands.start import start

    init = [] if settings.init_from is None else _init_overrides(settings.init_from)
    return start(configs.load(settings.config, [*init, *overrides]), where, "train")


def _init_overrides(text: str) -> Overrides:
    """Overrides of the config for PATH or PATH@STEP: without a step, the newest checkpoint."""
    path, step = split_step(text)
    return [("init.path", repr(path)), ("init.step", repr(step))]


TRAIN = Command(
    "train",
    "train a model from a config, or continue a run",
    lambda: (TrainSettings, StartSettings),
    _run,
    takes_overrides=True,
    notes=lambda: "Any setting: --config.a.b=value (a Python literal, or text).",
)

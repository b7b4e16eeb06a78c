"""`hybridlm train`."""

import dataclasses
import os
import pathlib

from hybridlm.commands.command import Command, Overrides
from hybridlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Which run, and which of several hosts runs this process.

    Attributes:
      config: recipe: file.py or file.py:argument.
      workdir: folder of the run.
      init_from: begin with the parameters of this run or model folder: PATH or PATH@STEP.
      dry_run: print the resolved config and the cost, and train nothing.
      coordinator: HOST:PORT of process 0, for several hosts.
      num_processes: number of hosts.
      process_id: number of this host, from 0.
      cluster: launcher that sets these variables: auto, none, slurm, ompi, tpu.
    """

    config: str
    workdir: pathlib.Path | None = None
    init_from: str | None = None
    dry_run: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    cluster: str = "auto"


def _run(settings: TrainSettings, overrides: Overrides) -> int:
    from hybridlm import config as configs

    init = [] if settings.init_from is None else _init_overrides(settings.init_from)
    config = configs.load(settings.config, [*init, *overrides])
    if settings.dry_run:
        from hybridlm.commands.dry_run import describe

        print(describe(config))
        return 0
    if settings.workdir is None:
        raise UserError("train needs --workdir, the folder of the run (or --dry_run)")
    from hybridlm.commands.full_run import full_run
    from hybridlm.parallel import hosts

    where = hosts.address(settings.coordinator, settings.num_processes, settings.process_id)
    hosts.start(where, settings.cluster, os.environ)
    return full_run(config, settings.workdir)


def _init_overrides(text: str) -> Overrides:
    """Overrides of the config for PATH or PATH@STEP; a folder's own name may have an "@"."""
    path, at, step = text.rpartition("@")
    if not at or not step.isdecimal() or pathlib.Path(text).is_dir():
        return [("init.path", repr(text))]
    return [("init.path", repr(path)), ("init.step", step)]


TRAIN = Command(
    "train",
    "train a model from a config, or continue a run",
    lambda: (TrainSettings,),
    _run,
    takes_overrides=True,
    notes=lambda: "Any setting: --config.a.b=value (a Python literal, or text).",
)

"""Settings and helpers that several commands share."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Annotated, Literal, Protocol

from hybridlm.settings.bounds import IsLocalPath, NotEmpty, settings
from hybridlm.storage.writing import writing


class Described(Protocol):
    """An entry of a registry."""

    name: str
    help: str


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Which model.

    Attributes:
      workdir: folder of a run, or a model folder.
      step: step of the checkpoint; the newest by default.
      weights: the parameters of the step, or their moving average (train.ema_decay).
    """

    workdir: pathlib.Path
    step: int | None = None
    weights: Literal["raw", "ema"] = "raw"


@settings
class CompilationSettings:
    """Where compiled programs are kept.

    Attributes:
      compilation_cache: folder of compiled programs; auto is ~/.cache/hybridlm/compiled, off is none.
    """

    compilation_cache: Annotated[str, NotEmpty(), IsLocalPath()] = "auto"

    def start(self) -> None:
        """Makes JAX use the folder; call it before anything is compiled."""
        from hybridlm.parallel import compilation_cache

        compilation_cache.use(self.compilation_cache)


@dataclasses.dataclass(frozen=True)
class StartSettings:
    """Where the run goes, and which of several hosts runs this process.

    Attributes:
      workdir: folder of the run.
      dry_run: print the model's parameters and the cost, and train nothing.
      show_config: with dry_run, print the resolved config before them, as JSON.
      coordinator: HOST:PORT of process 0, for several hosts.
      num_processes: number of hosts.
      process_id: number of this host, from 0.
      cluster: launcher that sets these variables: auto, none, slurm, ompi, tpu.
    """

    workdir: pathlib.Path | None = None
    dry_run: bool = False
    show_config: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    cluster: str = "auto"


@dataclasses.dataclass(frozen=True)
class OutputSettings:
    """Where results go.

    Attributes:
      out: folder for the results.
    """

    out: pathlib.Path


def make_folder(out: pathlib.Path) -> pathlib.Path:
    """Makes the folder for results.

    Raises:
      WriteError: if it cannot be made.
    """
    with writing(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
    return out


def listed(title: str, entries: Iterable[Described]) -> str:
    """The entries of a registry for help, one per line."""
    entries = list(entries)
    width = max(len(entry.name) for entry in entries)
    lines = (f"  {entry.name:<{width}}  {entry.help.replace('`', '')}" for entry in entries)
    return "\n".join([f"{title}:", *lines])

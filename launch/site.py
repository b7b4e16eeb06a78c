"""What a site's machines need said, once: a small TOML file with a table for each target."""

import dataclasses
import pathlib
import tomllib
from typing import Literal

from hybridlm.errors import ConfigError, UserError
from hybridlm.settings.reader import read_dataclass, require

Priority = Literal["very-low", "low", "medium", "high", "very-high"]


@dataclasses.dataclass(frozen=True)
class LocalSite:
    """This machine.

    Attributes:
      gpus: numbers of the GPUs to use, divided evenly over the runs at one time; a run sees its
        own in CUDA_VISIBLE_DEVICES. Empty: every run sees every device.
      env: environment variables of every run.
    """

    gpus: tuple[int, ...] = ()
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SlurmSite:
    """A SLURM cluster whose nodes see this machine's files. The names are submitit's.

    Attributes:
      timeout_min: time limit of a job in minutes; a run that needs longer is requeued.
      max_num_timeout: how often it is requeued for that; preemptions are not counted.
      signal_delay_s: seconds before the limit at which a run is asked to save.
      array_parallelism: jobs at one time, where --parallel does not say it.
      setup: shell lines before each job, e.g. "module load cuda".
      additional_parameters: any other sbatch option by its name.
      env: environment variables of every run.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    timeout_min: int = 24 * 60
    max_num_timeout: int = 100
    signal_delay_s: int = 180
    nodes: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    constraint: str | None = None
    exclude: str | None = None
    array_parallelism: int = 256
    setup: tuple[str, ...] = ()
    additional_parameters: dict[str, str] = dataclasses.field(default_factory=dict)
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("timeout_min", "nodes", "array_parallelism", "signal_delay_s"):
            require(
                getattr(self, name) >= 1, name, f"must be at least 1, not {getattr(self, name)}"
            )
        require(self.max_num_timeout >= 0, "max_num_timeout", "must be 0 or more")


@dataclasses.dataclass(frozen=True)
class XpkSite:
    """TPUs on GKE, through xpk.

    Attributes:
      cluster, project, zone: of the GKE cluster.
      tpu_type: e.g. "v5litepod-16"; `num_slices` of them make a run.
      docker_image: has hybridlm and the recipe at the path that --config gives; or
      base_docker_image: has hybridlm, and xpk adds the folder `script_dir` to it.
      root: where the pods see the sweep's root, on storage that all of them share.
      program: what starts hybridlm in the image.
      max_restarts: of a workload that was preempted or asked to stop.
      grace_seconds: that a pod has to save when it is asked to stop.
      extra_args: more words for `xpk workload create`.
      env: environment variables of every run.
    """

    cluster: str
    tpu_type: str
    root: str
    project: str | None = None
    zone: str | None = None
    docker_image: str | None = None
    base_docker_image: str | None = None
    script_dir: str | None = None
    num_slices: int = 1
    priority: Priority = "medium"
    max_restarts: int = 100
    grace_seconds: int = 180
    program: str = "hybridlm"
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        require(self.num_slices >= 1, "num_slices", f"must be at least 1, not {self.num_slices}")
        require(self.max_restarts >= 0, "max_restarts", "must be 0 or more")
        require(self.grace_seconds >= 1, "grace_seconds", "must be at least 1")
        require(
            (self.docker_image is None) != (self.base_docker_image is None),
            "docker_image",
            "or base_docker_image must be given, and not both",
        )


@dataclasses.dataclass(frozen=True)
class SkySite:
    """Any cloud that SkyPilot reaches.

    Attributes:
      accelerators: e.g. "H100:8" or "tpu-v5e-8".
      root: where the machines see the sweep's root: a path under one of `file_mounts`.
      file_mounts: path on the machine -> bucket (mounted) or a path here (copied).
      infra: "gcp/us-central2", "kubernetes", ...; None lets SkyPilot choose.
      spot: machines that may be taken away; runs go on elsewhere.
      workdir: folder that is copied to the machine, where the recipe lies; None for none.
      setup: shell lines run once on a new machine; they install hybridlm, unless image_id has it.
      max_restarts: of a run that fails; one that saved and exits with 75 is not counted.
      program: what starts hybridlm there.
      env: environment variables of every run.
    """

    accelerators: str
    root: str
    file_mounts: dict[str, str] = dataclasses.field(default_factory=dict)
    infra: str | None = None
    image_id: str | None = None
    num_nodes: int = 1
    spot: bool = True
    disk_size: int | None = None
    workdir: str | None = "."
    setup: tuple[str, ...] = ()
    max_restarts: int = 0
    program: str = "hybridlm"
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        require(self.num_nodes >= 1, "num_nodes", f"must be at least 1, not {self.num_nodes}")
        require(self.max_restarts >= 0, "max_restarts", "must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Site:
    """A table for each target; those of `xpk` and `sky` have settings that must be given."""

    local: LocalSite = LocalSite()
    slurm: SlurmSite = SlurmSite()
    xpk: XpkSite | None = None
    sky: SkySite | None = None


def read_site(path: pathlib.Path | None) -> Site:
    """The settings in a TOML file; the defaults where there is none.

    Raises:
      UserError: one sentence that names the file, and the key with the nearest valid one.
    """
    if path is None:
        return Site()
    try:
        with path.open("rb") as file:
            return read_dataclass(Site, tomllib.load(file), "")
    except OSError as error:
        raise UserError(f"--site {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--site {path} is no TOML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"--site {path}: {error}") from None

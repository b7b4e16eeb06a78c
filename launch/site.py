"""Settings of a site's machines: a TOML file with a table for each target."""

import dataclasses
import pathlib
import tomllib
from typing import Literal

from hybridlm.errors import ConfigError, UserError
from hybridlm.settings.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt, settings
from hybridlm.settings.reader import read_dataclass, require

Priority = Literal["very-low", "low", "medium", "high", "very-high"]


@settings
class LocalSite:
    """This machine.

    Attributes:
      gpus: numbers of the GPUs to use, divided evenly over the concurrent runs; a run gets its
        GPUs in CUDA_VISIBLE_DEVICES. Empty: every run uses all devices.
      env: environment variables of every run.
    """

    gpus: tuple[NonNegativeInt, ...] = ()
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@settings
class SlurmSite:
    """A SLURM cluster whose nodes share this machine's file system. Names are those of submitit.

    Attributes:
      partition: the partition that jobs are submitted to; None uses SLURM's default.
      account: the account that jobs are charged to; None uses SLURM's default.
      qos: quality of service; None uses SLURM's default.
      timeout_min: time limit of a job in minutes; a run that needs longer is requeued.
      max_num_timeout: maximum number of such requeues; preemptions are not counted.
      signal_delay_s: seconds before the time limit at which a run is told to save.
      nodes: nodes of a run, with one process each.
      gpus_per_node: GPUs of a run on each node; None requests none.
      cpus_per_task: CPU cores of a run's process on each node; None uses SLURM's default.
      mem_gb: memory on each node in GiB, 0 for all of it; None uses SLURM's default.
      constraint: required features of nodes, in the syntax of sbatch --constraint.
      exclude: nodes not to use, in the syntax of sbatch --exclude.
      array_parallelism: concurrent jobs if --parallel is not given.
      setup: shell lines to run before each job, e.g. "module load cuda".
      additional_parameters: other sbatch options by name.
      env: environment variables of every run.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    timeout_min: PositiveInt = 24 * 60
    max_num_timeout: NonNegativeInt = 100
    signal_delay_s: PositiveInt = 180
    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt | None = None
    cpus_per_task: PositiveInt | None = None
    mem_gb: NonNegativeFloat | None = None
    constraint: str | None = None
    exclude: str | None = None
    array_parallelism: PositiveInt = 256
    setup: tuple[str, ...] = ()
    additional_parameters: dict[str, str] = dataclasses.field(default_factory=dict)
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@settings
class XpkSite:
    """TPUs on GKE, through xpk.

    Attributes:
      cluster: name of the GKE cluster.
      project: Google Cloud project of the cluster; None uses gcloud's setting.
      zone: zone of the cluster; None uses gcloud's setting.
      tpu_type: kind and size of a slice, e.g. "v5litepod-16".
      num_slices: slices of a run.
      docker_image: an image with hybridlm, and with the recipe at the path given by --config.
      base_docker_image: alternatively, an image with hybridlm to which xpk adds `script_dir`.
      script_dir: folder added to `base_docker_image`; None means the current folder.
      root: path of the sweep's root in the pods, in a bucket (gs://…) or on storage that all share.
      priority: priority of workloads in the cluster's queue.
      program: command that starts hybridlm in the image.
      max_restarts: restarts of a workload that was preempted or told to stop.
      grace_seconds: seconds that a pod has to save when it is told to stop.
      extra_args: additional arguments for `xpk workload create`.
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
    num_slices: PositiveInt = 1
    priority: Priority = "medium"
    max_restarts: NonNegativeInt = 100
    grace_seconds: PositiveInt = 180
    program: str = "hybridlm"
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        require(
            (self.docker_image is None) != (self.base_docker_image is None),
            "docker_image",
            "or base_docker_image must be given, and not both",
        )


@settings
class SkySite:
    """Any cloud that SkyPilot reaches.

    Attributes:
      accelerators: accelerators of one machine, e.g. "H100:8" or "tpu-v5e-8".
      root: path of the sweep's root on the machines, under one of `file_mounts`.
      file_mounts: path on the machine -> bucket (mounted) or local path (copied).
      infra: "gcp/us-central2", "kubernetes", ...; None lets SkyPilot choose.
      image_id: image of the machines; None uses SkyPilot's default.
      num_nodes: machines of a run.
      disk_size: disk of a machine in GB; None uses SkyPilot's default.
      spot: use preemptible machines; preempted runs continue on other machines.
      workdir: folder with the recipe, copied to the machine; None copies nothing.
      setup: shell lines to run once on a new machine; they must install hybridlm if image_id does
        not have it.
      max_restarts: restarts of a failed run; those after exit code 75 (saved) are not counted.
      program: command that starts hybridlm on the machine.
      env: environment variables of every run.
    """

    accelerators: str
    root: str
    file_mounts: dict[str, str] = dataclasses.field(default_factory=dict)
    infra: str | None = None
    image_id: str | None = None
    num_nodes: PositiveInt = 1
    spot: bool = True
    disk_size: PositiveInt | None = None
    workdir: str | None = "."
    setup: tuple[str, ...] = ()
    max_restarts: NonNegativeInt = 0
    program: str = "hybridlm"
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@settings
class Site:
    """A table for each target.

    Attributes:
      local: this machine.
      slurm: a SLURM cluster.
      xpk: TPUs on GKE; None if not used, since some of its settings are required.
      sky: clouds, through SkyPilot; None if not used, since some of its settings are required.
    """

    local: LocalSite = LocalSite()
    slurm: SlurmSite = SlurmSite()
    xpk: XpkSite | None = None
    sky: SkySite | None = None


def read_site(path: pathlib.Path | None) -> Site:
    """Reads the settings of a TOML file; `path` None gives the defaults.

    Raises:
      UserError: if the file is unreadable or invalid; names the file, the key and the nearest one.
    """
    if path is None:
        return Site()
    try:
        with path.open("rb") as file:
            return read_dataclass(Site, tomllib.load(file), "")
    except OSError as error:
        raise UserError(f"--site {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--site {path} is not valid TOML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"--site {path}: {error}") from None

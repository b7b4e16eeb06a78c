"""What a site's machines need said, once: a small TOML file with a table for each target."""

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
      gpus: numbers of the GPUs to use, divided evenly over the runs at one time; a run sees its
        own in CUDA_VISIBLE_DEVICES. Empty: every run sees every device.
      env: environment variables of every run.
    """

    gpus: tuple[NonNegativeInt, ...] = ()
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@settings
class SlurmSite:
    """A SLURM cluster whose nodes see this machine's files. The names are submitit's.

    Attributes:
      partition: the partition that jobs are submitted to; None leaves it to SLURM.
      account: the account that jobs are charged to; None leaves it to SLURM.
      qos: quality of service; None leaves it to SLURM.
      timeout_min: time limit of a job in minutes; a run that needs longer is requeued.
      max_num_timeout: how often it is requeued for that; preemptions are not counted.
      signal_delay_s: seconds before the limit at which a run is asked to save.
      nodes: nodes of one run; each has one process.
      gpus_per_node: GPUs that a run takes on each node; None asks for none.
      cpus_per_task: CPU cores of a run's process on each node; None leaves it to SLURM.
      mem_gb: memory on each node in GiB, 0 for all of it; None leaves it to SLURM.
      constraint: features that nodes must have, as sbatch --constraint takes them.
      exclude: nodes that are not to be used, as sbatch --exclude takes them.
      array_parallelism: jobs at one time, where --parallel does not say it.
      setup: shell lines before each job, e.g. "module load cuda".
      additional_parameters: any other sbatch option by its name.
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
      project: Google Cloud project of the cluster; None takes gcloud's own setting.
      zone: zone of the cluster; None takes gcloud's own setting.
      tpu_type: kind and size of a slice, e.g. "v5litepod-16".
      num_slices: slices that make a run.
      docker_image: an image that has hybridlm, and the recipe at the path that --config gives.
      base_docker_image: instead, an image that has hybridlm; xpk adds the folder `script_dir`.
      script_dir: folder that is added to `base_docker_image`; None is the current one.
      root: where the pods see the sweep's root, on storage that all of them share.
      priority: a workload's priority in the cluster's queue.
      program: what starts hybridlm in the image.
      max_restarts: restarts of a workload that was preempted or asked to stop.
      grace_seconds: seconds that a pod has to save when it is asked to stop.
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
      root: where the machines see the sweep's root: a path under one of `file_mounts`.
      file_mounts: path on the machine -> bucket (mounted) or a path here (copied).
      infra: "gcp/us-central2", "kubernetes", ...; None lets SkyPilot choose.
      image_id: image of the machines; None is SkyPilot's own.
      num_nodes: machines that make a run.
      disk_size: disk of a machine in GB; None is SkyPilot's own.
      spot: machines that may be taken away; runs go on elsewhere.
      workdir: folder that is copied to the machine, where the recipe lies; None for none.
      setup: shell lines run once on a new machine; they install hybridlm, unless image_id has it.
      max_restarts: restarts of a run that fails; one that saved and exits with 75 is not counted.
      program: what starts hybridlm there.
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
      xpk: TPUs on GKE; None where there are none, as some of its settings must be given.
      sky: clouds, through SkyPilot; None where there are none, as some of its settings must be
        given.
    """

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

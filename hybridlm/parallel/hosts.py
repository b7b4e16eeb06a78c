"""Runs on several hosts: connecting them, loading each host's rows, and stopping all at one step.

Each host is one process that runs the same program on its own devices. Only the first host (process
0) writes the workdir, tokenizes and prints. `fail_together` and `in_turn` stop all hosts if one
fails, so that no host waits for a failed one.
"""

import contextlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from hybridlm import progress
from hybridlm.errors import TRY_AGAIN, RunError, UserError

CLUSTERS = ("auto", "none", "slurm", "ompi", "tpu")
HEARTBEAT_SECONDS = 30  # a host without heartbeat for this long is considered lost


class Address(NamedTuple):
    """HOST:PORT of the coordinator (process 0), the number of hosts, and the index of this one."""

    coordinator: str
    count: int
    index: int


def address(coordinator: str | None, count: int | None, index: int | None) -> Address | None:
    """The address of the command-line options; None if no option is given.

    Raises:
      UserError: if the options are incomplete or invalid.
    """
    given = (coordinator, count, index)
    if given == (None, None, None):
        return None
    if None in given:
        raise UserError("--coordinator, --num_processes and --process_id must be given together")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator must be HOST:PORT of process 0, not {coordinator!r}")
    if count < 1:
        raise UserError(f"--num_processes must be at least 1, not {count}")
    if not 0 <= index < count:
        raise UserError(f"--process_id must lie in [0, {count}), not {index}")
    return Address(coordinator, count, index)


def detect_cluster(environment: Mapping[str, str]) -> str | None:
    """The launcher that started this process as one of several, detected by its variables.

    "slurm" (srun), "ompi" (mpirun of Open MPI), "tpu" (a Cloud TPU worker, GKE or TPU VM) or None.
    """
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "ompi"
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return "slurm"
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return None
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    chips = any(pathlib.Path("/dev").glob("accel[0-9]*")) or pathlib.Path("/dev/vfio").exists()
    if "," in hosts or (chips and importlib.util.find_spec("libtpu")):
        return "tpu"
    return None


def start(where: Address | None, cluster: str, environment: Mapping[str, str]) -> None:
    """Connects this host to the others; call it before JAX uses a device. No-op on a single host.

    Args:
      where: the address, or None to read the launcher's variables in `environment`.
      cluster: one of `CLUSTERS`; "auto" uses `detect_cluster`.

    Raises:
      UserError: if the cluster is unknown or the hosts cannot connect.
    """
    if cluster not in CLUSTERS:
        raise UserError(f"--cluster must be one of {', '.join(CLUSTERS)}, not {cluster!r}")
    options = {}
    if where is not None:
        options = dict(zip(("coordinator_address", "num_processes", "process_id"), where))
        options["cluster_detection_method"] = "deactivate"
    else:
        cluster = detect_cluster(environment) if cluster == "auto" else cluster
        if cluster in (None, "none"):
            return
        if cluster in ("slurm", "ompi"):
            options["cluster_detection_method"] = cluster
    try:
        with progress.doing("connecting to the other hosts"):
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **options)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the hosts of this run could not connect: {reason}") from error
    if not is_first():
        progress.silence()


def disconnect() -> None:
    """Disconnects the hosts once all have called this; afterwards each runs independently."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is the first host, the one that writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def fail_together(doing: str) -> Iterator[None]:
    """Context of work that all hosts do: if it raises a UserError on one host, all hosts raise.

    Args:
      doing: the work, for the error.

    Raises:
      RunError: on the hosts where the work succeeded; names the first host where it failed.
    """
    if jax.process_count() == 1:
        yield
        return
    failure: UserError | None = None
    try:
        yield
    except UserError as error:
        failure = error
    failed = multihost_utils.process_allgather(np.int32(failure is not None))
    if failure is not None:
        raise failure
    if np.any(failed):
        raise RunError(
            f"{doing} failed on host {int(np.argmax(failed))}: see the messages of that host"
        )


def in_turn[T](doing: str, work: Callable[[], T]) -> T:
    """Calls `work` on the first host, then on the others, and returns its result."""
    with fail_together(doing):
        if is_first():
            result = work()
    with fail_together(doing):
        if not is_first():
            result = work()
    return result


class Rows(NamedTuple):
    """The rows of a global batch (accumulate, rows, time) that this host's devices hold.

    Attributes:
      sharding: of the global batch.
      shape: of the global batch.
      indices: this host's rows of the global batch, in the order in which it loads them.
      own: for each of `indices`, whether no host before this one loads the row too, as several do
        where their devices split its time.
    """

    sharding: Sharding
    shape: tuple[int, int, int]
    indices: tuple[int, ...]
    own: tuple[bool, ...]

    @classmethod
    def of(cls, sharding: Sharding, shape: Sequence[int]) -> "Rows":
        parts, rows, _ = shape
        held = sharding.addressable_devices_indices_map(tuple(shape)).values()
        mine = sorted({row for index in held for row in range(rows)[index[1]]})
        indices = tuple(part * rows + row for part in range(parts) for row in mine)
        first: dict[int, int] = {}
        for device, index in sharding.devices_indices_map(tuple(shape)).items():
            for row in range(rows)[index[1]]:
                first[row] = min(first.get(row, device.process_index), device.process_index)
        own = [first[row] == jax.process_index() for row in mine]
        return cls(sharding, tuple(shape), indices, tuple(own * parts))

    def arrays(self, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global arrays; each of `local` (len(indices), time) has this host's rows of one."""
        if jax.process_count() == 1:  # one device_put for all arrays is much faster
            batch = {name: rows.reshape(self.shape) for name, rows in local.items()}
            return jax.device_put(batch, self.sharding)
        return {name: self._array(rows) for name, rows in local.items()}

    def _array(self, local: np.ndarray) -> jax.Array:
        parts, rows, time = self.shape
        local = local.reshape(parts, -1, time)
        position = {row: i for i, row in enumerate(self.indices[: local.shape[1]])}

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            held = [position[row] for row in range(rows)[index[1]]]
            return local[index[0], held[0] : held[-1] + 1, index[2]]

        return jax.make_array_from_callback(self.shape, self.sharding, shard)


def summed(values: Sequence[float]) -> np.ndarray:
    """The sum over hosts of each value, in float64; all hosts call it."""
    own = np.asarray(values, np.float64)
    if jax.process_count() == 1:
        return own
    # As bytes: jax would round to float32.
    gathered = multihost_utils.process_allgather(own.view(np.uint8))
    return np.asarray(gathered).view(np.float64).sum(axis=0)


def global_array(value: np.ndarray, sharding: Sharding) -> jax.Array:
    """The global array `value`, sharded; every host must pass the same complete `value`."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


class StopAgreement:
    """Agreement of all hosts to stop after the same step.

    The devices compute whether any host requested a stop after the training step that was just
    dispatched. The result is read one step later, so that no host waits for it.
    """

    def __init__(self, mesh: Mesh):
        self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._requested: jax.Array | None = None

    def should_stop(self, requested: bool) -> bool:
        """Whether to stop now.

        Args:
          requested: whether this host requests a stop.

        Returns:
          On one host `requested`; on several whether any host requested a stop at the last call.
        """
        if jax.process_count() == 1:
            return requested
        previous = self._requested
        requests = np.full(self._each.mesh.size, requested)
        self._requested = self._any(global_array(requests, self._each))
        return previous is not None and bool(previous)


def exit_process(error: Exception, doing: str) -> NoReturn:
    """Prints the error and exits at once.

    A normal exit would wait for the other hosts, which may be lost. They detect the exit of this
    host within `HEARTBEAT_SECONDS`.

    Args:
      error: what failed.
      doing: the work that failed, for the message.
    """
    if isinstance(error, UserError):
        message, code = str(error), error.exit_code
    else:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        code = TRY_AGAIN
        message = (
            f"{doing} failed on host {jax.process_index()} of {jax.process_count()}; a likely cause is"
            f" that another host has exited or cannot be reached ({reason}); start the same command"
            " again on all hosts to continue from the newest checkpoint"
        )
    print(f"hybridlm: {message}", file=sys.stderr, flush=True)
    os._exit(code)

"""Many hosts: one process each, that find each other, do the same steps, and agree when to stop.

Every process runs the same program on its share of the devices. What only one may do (write the
workdir, tokenize, print) the first one does; `together` and `in_turn` keep the others from waiting
for a host that has already failed.
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

from hybridlm.errors import TRY_AGAIN, RunError, UserError

CLUSTERS = ("auto", "none", "slurm", "ompi", "tpu")
HEARTBEAT_SECONDS = 30  # a host that is silent for so long counts as lost


class Address(NamedTuple):
    """Where the hosts meet, how many there are, and which one this is."""

    coordinator: str
    count: int
    index: int


def address(coordinator: str | None, count: int | None, index: int | None) -> Address | None:
    """An address given by hand, None where nothing was given.

    Raises:
      UserError: where it is incomplete or means nothing.
    """
    given = (coordinator, count, index)
    if given == (None, None, None):
        return None
    if None in given:
        raise UserError("--coordinator, --num_processes and --process_id are given together")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator must be HOST:PORT of process 0, not {coordinator!r}")
    if count < 1:
        raise UserError(f"--num_processes must be at least 1, not {count}")
    if not 0 <= index < count:
        raise UserError(f"--process_id must lie in [0, {count}), not {index}")
    return Address(coordinator, count, index)


def find(environment: Mapping[str, str]) -> str | None:
    """The cluster whose launcher started this process as one of several, by its variables.

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
    """Joins the other hosts, before any device is touched; returns at once where there are none.

    Args:
      where: given by hand, or None to ask the launcher's variables in `environment`.
      cluster: one of `CLUSTERS`; "auto" is what `find` finds.

    Raises:
      UserError: for an unknown cluster, or where the hosts do not meet.
    """
    if cluster not in CLUSTERS:
        raise UserError(f"--cluster must be one of {', '.join(CLUSTERS)}, not {cluster!r}")
    options = {}
    if where is not None:
        options = dict(zip(("coordinator_address", "num_processes", "process_id"), where))
        options["cluster_detection_method"] = "deactivate"
    else:
        found = find(environment) if cluster == "auto" else cluster
        if found in (None, "none"):
            return
        if found in ("slurm", "ompi"):
            options["cluster_detection_method"] = found
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **options)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the hosts of this run did not meet: {reason}") from error


def leave() -> None:
    """Says goodbye to the others, once all have come this far; what follows is this host's own."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """A part of the work that all hosts do: where one fails with a UserError, all end.

    Raises:
      RunError: on the hosts that did not fail themselves, naming the first that did.
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
        raise RunError(f"{what} failed on host {int(np.argmax(failed))}: its messages say why")


def in_turn[T](what: str, work: Callable[[], T]) -> T:
    """What `work` returns, done by the first host alone and then by the others."""
    with together(what):
        if is_first():
            result = work()
    with together(what):
        if not is_first():
            result = work()
    return result


class Rows(NamedTuple):
    """The part of a global batch (accumulate, rows, time) that this host's devices hold.

    indices: rows of the whole batch, in the order in which this host loads them.
    """

    sharding: Sharding
    shape: tuple[int, int, int]
    indices: tuple[int, ...]

    @classmethod
    def of(cls, sharding: Sharding, shape: Sequence[int]) -> "Rows":
        parts, rows, _ = shape
        held = sharding.addressable_devices_indices_map(tuple(shape)).values()
        mine = sorted({row for index in held for row in range(rows)[index[1]]})
        indices = tuple(part * rows + row for part in range(parts) for row in mine)
        return cls(sharding, tuple(shape), indices)

    def arrays(self, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global arrays of which each of `local` (len(indices), time) is this host's rows."""
        if jax.process_count() == 1:  # at once, which spares most of the time
            whole = {name: rows.reshape(self.shape) for name, rows in local.items()}
            return jax.device_put(whole, self.sharding)
        return {name: self._array(rows) for name, rows in local.items()}

    def _array(self, local: np.ndarray) -> jax.Array:
        parts, rows, time = self.shape
        local = local.reshape(parts, -1, time)
        place = {row: i for i, row in enumerate(self.indices[: local.shape[1]])}

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            held = [place[row] for row in range(rows)[index[1]]]
            return local[index[0], held[0] : held[-1] + 1, index[2]]

        return jax.make_array_from_callback(self.shape, self.sharding, piece)


def whole(value: np.ndarray, sharding: Sharding) -> jax.Array:
    """A global array of which every host has all of `value`."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


class Vote:
    """Whether any host wants to stop: the same answer on all of them, after the same step.

    Hands are counted on the devices behind the step that was just begun, and read with the step
    before it, so that nobody waits.
    """

    def __init__(self, mesh: Mesh):
        self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._counted: jax.Array | None = None

    def stop(self, raised: bool) -> bool:
        """Raises or keeps down this host's hand; tells whether one was up at the step before."""
        if jax.process_count() == 1:
            return raised
        before = self._counted
        hands = np.full(self._each.mesh.size, raised)
        self._counted = self._any(whole(hands, self._each))
        return before is not None and bool(before)


def end(error: Exception, doing: str) -> NoReturn:
    """Ends this process at once, saying why: others that wait for it, or that it would wait for on
    its way out, may be gone. They notice within `HEARTBEAT_SECONDS`."""
    if isinstance(error, UserError):
        message, code = str(error), error.exit_code
    else:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        code = TRY_AGAIN
        message = (
            f"{doing} failed on host {jax.process_index()} of {jax.process_count()}, as it does when"
            f" another host has ended or cannot be reached ({reason}); start the same command again"
            " on all hosts to go on from the newest checkpoint"
        )
    print(f"hybridlm: {message}", file=sys.stderr, flush=True)
    os._exit(code)

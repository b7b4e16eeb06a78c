"""Checkpoints of a run: saved asynchronously, complete or absent, restored on any devices.

A checkpoint is an Orbax v1 folder `checkpoints/STEP/` of plain arrays. Orbax writes it under
another name and renames it at the end, so a killed save leaves no checkpoint that could be loaded.
"""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from hybridlm.convert import LazyArray
from hybridlm.errors import RunError, UserError, WriteError
from hybridlm.runs import checksum, integrity
from hybridlm.storage import is_remote
from hybridlm.storage.objects import is_refusal
from hybridlm.storage.orbax import complete_steps, orbax_path

FOLDER = "checkpoints"
REMEDY = "copy it again, or remove that folder to resume from the one before it"
REWRITE = "copy the model folder again, or write it anew"
_WRITTEN_AT_ONCE = 2**26  # bytes of a folder's arrays, beside the arrays themselves
_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one workdir, newest last."""

    def __init__(self, workdir: pathlib.Path, keep: int, keep_every: int | None = None):
        """Opens or creates the folder.

        Args:
          keep: number of the newest checkpoints to keep.
          keep_every: also keep checkpoints whose step is a multiple of this.
        """
        policies = [_policies.LatestN(keep)]
        if keep_every:
            policies.append(_policies.EveryNSteps(keep_every))
        self._folder = orbax_path(workdir / FOLDER)
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_policies.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self._saving: Any = None  # Orbax's response for the save in progress

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None without one."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Waits for the previous save, starts this one and returns.

        The metadata get a checksum of every array (see `hybridlm.runs.checksum`), computed while
        the arrays are written. The next step may donate the arrays: what is written and summed after
        this returns is a copy, or was queued on the devices before it.

        Raises:
          RunError: if this or the previous checkpoint cannot be written.
        """
        with self._writing():
            state = jax.tree.map(_own, state)
            metadata = integrity.sealed(metadata, state)
            self._saving = self._checkpointer.save_async(step, state, custom_metadata=metadata)

    def check(self) -> None:
        """Raises RunError if the save in progress has failed; does not wait for it."""
        if self._saving is None:
            return
        with self._writing(), contextlib.suppress(TimeoutError):  # it is still being written
            self._saving.result(timeout=0)
            self._saving = None

    def restore(self, abstract: Any) -> Any:
        """Restores the newest checkpoint with the shardings of `abstract`, on any mesh.

        Raises:
          RunError: if it cannot be read, or an array is not the one that was saved; an older
            checkpoint is not used instead.
        """
        step = self.latest_step
        path = self._folder / str(step)
        with integrity.readable(path, REMEDY):
            saved = integrity.read_checksums(path)
            integrity.check_layouts(saved, abstract)
            state = self._checkpointer.load(step, abstract)
            integrity.check(saved, state)
            return state

    def wait(self) -> None:
        """Waits for the save in progress; raises RunError if it could not be written."""
        with self._writing():
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits as `wait` does, then releases the checkpointer."""
        with self._writing():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Converts Orbax's exceptions for what it could not write to a RunError."""
        try:
            with integrity.late_arrays_dropped():
                yield
        except UserError:
            raise
        except Exception as error:
            reason = write_failure(error)
            if reason is None and self._saving is None:
                raise
            # Whatever ends a save in the background: a folder removed under it is a ValueError.
            reason = reason or " ".join(str(error).split())[:300]
            found = steps(self._folder.parent)
            last = f"that of step {found[-1]} is the newest" if found else "there is none yet"
            mend = "mend that" if is_remote(self._folder) else "make room"
            again = "resumes from there" if found else "begins again"
            raise RunError(
                f"a checkpoint cannot be written to {self._folder} ({reason}): {last}; {mend},"
                f" and the same command {again}"
            ) from error


def write_failure(error: Exception) -> str | None:
    """Why Orbax could not write to a disk or a bucket; None if that is not the error."""
    reason = " ".join(str(error).split())
    # When a tensor cannot be written, Orbax raises a ValueError with TensorStore's whole settings.
    if code := re.search(r"os_error_code='?(\d+)", reason):
        return os.strerror(int(code[1]))
    if isinstance(error, OSError):
        return reason[-300:]
    return reason[:300] if is_refusal(error) else None


def _own(array: Any) -> Any:
    """A copy of an array of numpy or of CPU devices, which share their memory with numpy.

    Orbax copies arrays of other devices to the host before it returns.
    """
    if not isinstance(array, jax.Array):
        return array.copy() if isinstance(array, np.ndarray) else array
    devices = array.sharding.device_set
    return jnp.copy(array) if any(device.platform == "cpu" for device in devices) else array


def save_tree(path: pathlib.Path, tree: Any) -> None:
    """Writes nested dicts of arrays, with their checksums, as an Orbax folder for `load_tree`.

    Raises:
      WriteError: if it cannot be written.
    """
    largest = max((x.nbytes for x in jax.tree.leaves(tree)), default=0)
    memory = ocp.options.MemoryOptions(
        deepcopy_host_arrays=False,  # nothing changes them before this returns
        write_concurrent_bytes=max(largest, _WRITTEN_AT_ONCE),
    )
    try:
        with ocp.Context(memory_options=memory), integrity.late_arrays_dropped():
            ocp.save(orbax_path(path), tree, custom_metadata=integrity.sealed({}, tree))
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        raise WriteError(f"{path} cannot be written: {reason}") from error


def steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints under `workdir`, oldest first."""
    folder = workdir / FOLDER
    if is_remote(folder):
        return complete_steps(folder)
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def load_numpy(workdir: pathlib.Path, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """Loads a checkpoint without devices, a mesh or the classes that saved it.

    Returns:
      (step, state as nested dicts of numpy arrays).

    Raises:
      RunError: if the run has no such checkpoint, it cannot be read, or an array is not the one
        that was saved.
    """
    step = find(workdir, step)
    return step, load_tree(workdir / FOLDER / str(step))


def find(workdir: pathlib.Path, step: int | None = None) -> int:
    """The step itself if `workdir` has a checkpoint of it; without a step, the newest one's.

    Raises:
      RunError: if the run has no such checkpoint.
    """
    found = steps(workdir)
    if not found:
        raise RunError(f"{workdir} holds no checkpoint")
    if step is not None and step not in found:
        raise RunError(f"{workdir} holds no checkpoint of step {step}: it has {_listed(found)}")
    return found[-1] if step is None else step


def load_tree(
    path: pathlib.Path, parts: Sequence[str] | None = None, *, remedy: str = REMEDY
) -> dict[str, Any]:
    """Loads an Orbax folder of arrays as nested dicts of numpy arrays, and checks them.

    Args:
      parts: the top-level keys to load; None loads all.
      remedy: what to do if the folder is damaged, for the error.

    Raises:
      RunError: if it cannot be read, or an array is not the one that was saved.
    """
    path = orbax_path(path)
    with integrity.readable(path, remedy):
        saved = integrity.read_checksums(path)
        metadata = ocp.metadata(path).metadata
        integrity.check_layouts(saved, metadata)
        parts = tuple(metadata) if parts is None else parts
        abstract = {
            key: jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
            if key in parts
            else jax.tree.map(lambda _: ocp.PLACEHOLDER, tree)
            for key, tree in metadata.items()
        }
        loaded = ocp.load(path, abstract)
        state = {key: loaded[key] for key in parts}
        integrity.check(saved, state, parts)
        return state


def verify(workdir: pathlib.Path, step: int) -> int | None:
    """Reads a checkpoint array by array and compares the checksums.

    Returns:
      The number of its arrays; None if an older version saved it without checksums.

    Raises:
      RunError: naming the arrays that cannot be read or are not those that were saved.
    """
    return verify_tree(workdir / FOLDER / str(step))


def verify_tree(path: pathlib.Path, *, remedy: str = REMEDY) -> int | None:
    """`verify` of any Orbax folder; `remedy` is what to do if it is damaged, for the error."""
    path = orbax_path(path)
    with integrity.readable(path, remedy):
        return integrity.verify(path)


def describe_tree(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, facts) of an Orbax folder, without reading an array.

    Returns:
      The arrays have `shape` and `dtype`, nested as in `load_tree`; the facts are those that were
      saved beside them (`Checkpoints.save`).

    Raises:
      RunError: if it cannot be read.
    """
    path = orbax_path(path)
    with integrity.readable(path, REMEDY):
        described = ocp.metadata(path)
        return described.metadata, described.custom_metadata or {}


def digest(tree: Any) -> str:
    """SHA-256 of a pytree of arrays: the path, dtype, shape and bytes of each, in path order.

    No array is copied; of the arrays that `hybridlm.convert` reads late, one tensor is in memory.
    """
    sha = hashlib.sha256()
    for name, leaf in sorted(checksum.named(tree).items()):
        rows = leaf.rows() if isinstance(leaf, LazyArray) else [leaf]
        leaf = leaf if isinstance(leaf, LazyArray) else np.asarray(leaf)
        shape = leaf.shape or (1,)  # of a scalar, as all digests so far
        sha.update(f"{name} {leaf.dtype.str} {shape}\n".encode())
        for row in rows:
            sha.update(np.ascontiguousarray(row).reshape(-1).view(np.uint8))
    return sha.hexdigest()


def _listed(found: list[int]) -> str:
    return ", ".join(str(s) for s in found)

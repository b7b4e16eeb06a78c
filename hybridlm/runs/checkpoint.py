"""Checkpoints of a run: asynchronous, whole or absent, opened anywhere.

A checkpoint is an Orbax v1 folder `checkpoints/STEP/` of plain arrays. Orbax writes it under
another name and renames it at the end, so that a killed save leaves nothing that could be loaded.
"""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from hybridlm.errors import RunError

FOLDER = "checkpoints"
_policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one workdir, newest last."""

    def __init__(self, workdir: pathlib.Path, keep: int, keep_every: int | None = None):
        """Opens or makes the folder.

        Args:
          keep: how many of the newest checkpoints stay.
          keep_every: checkpoints at multiples of this stay, too.
        """
        policies = [_policies.LatestN(keep)]
        if keep_every:
            policies.append(_policies.EveryNSteps(keep_every))
        self._folder = (workdir / FOLDER).absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_policies.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Starts a save and returns; waits first for one that is still under way.

        The arrays are copied before this returns, so the step may then donate them.

        Raises:
          RunError: where it, or the one before, cannot be written.
        """
        with self._writing():
            self._checkpointer.save_async(step, state, custom_metadata=metadata)

    def restore(self, abstract: Any) -> Any:
        """The newest checkpoint, placed as `abstract` says (another mesh than the saver's is fine).

        Raises:
          RunError: where it cannot be read; no older one is taken in its place unasked.
        """
        step = self.latest_step
        with _readable(self._folder / str(step)):
            return self._checkpointer.load(step, abstract)

    def wait(self) -> None:
        """Returns when no save is under way; raises RunError where one could not be written."""
        with self._writing():
            self._checkpointer.wait()

    def close(self) -> None:
        """As `wait`, and the last call."""
        with self._writing():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what Orbax raises over a full or unwritable disk into a RunError."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())
            # What the disk refuses Orbax's tensors is no OSError.
            if not isinstance(error, OSError) and "os_error_code" not in reason:
                raise
            found = steps(self._folder.parent)
            last = f"that of step {found[-1]} is the newest" if found else "there is none yet"
            raise RunError(
                f"a checkpoint cannot be written to {self._folder} ({reason[-300:]}): {last}; with room"
                " to write, the same command goes on from there"
            ) from error


def steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the whole checkpoints under `workdir`, oldest first."""
    folder = workdir / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def load_numpy(workdir: pathlib.Path, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """(step, state as nested dicts of numpy arrays): needs no devices, mesh or class of the saver.

    Raises:
      RunError: where the run has no such checkpoint.
    """
    found = steps(workdir)
    if not found:
        raise RunError(f"{workdir} holds no checkpoint")
    if step is not None and step not in found:
        raise RunError(f"{workdir} holds no checkpoint of step {step}: it has {_listed(found)}")
    step = found[-1] if step is None else step
    path = workdir / FOLDER / str(step)
    return step, load_tree(path)


def load_tree(path: pathlib.Path) -> dict[str, Any]:
    """An Orbax folder of arrays as nested dicts of numpy arrays.

    Raises:
      RunError: where it cannot be read.
    """
    path = path.absolute()
    with _readable(path):
        metadata = ocp.metadata(path).metadata
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata)
        return ocp.load(path, abstract)


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever Orbax raises over a damaged checkpoint into a RunError that names it."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"the checkpoint {path} cannot be read ({reason[:300]}): copy it again, or remove that"
            " folder to go on from the one before it"
        ) from error


def digest(tree: Any) -> str:
    """SHA-256 of a pytree of arrays: of each, in path order, its path, dtype, shape and bytes."""
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.ascontiguousarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    sha = hashlib.sha256()
    for name, array in sorted(named.items()):
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _listed(found: list[int]) -> str:
    return ", ".join(str(s) for s in found)

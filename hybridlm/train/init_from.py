"""Starts a run from the parameters of another run or of a model folder (config section `init`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hybridlm.parallel import hosts
from hybridlm.runs import checkpoint
from hybridlm.runs.lineage import Origin
from hybridlm.train.init_plan import Copy, Path, Place, Plan, leaves, path_names
from hybridlm.train.state import TrainState

Ranges = tuple[tuple[int, int], ...]


def start_state(plan: Plan, state: TrainState) -> tuple[TrainState, list[Origin]]:
    """Replaces what `plan` takes from the source in a fresh train state.

    Every host reads the source's arrays into its memory and keeps its own shards.

    Args:
      state: fresh; its arrays are deleted as they are replaced.

    Returns:
      (state, the lineage of the new run, with hashes on the first host only).
    """
    init, source = plan.settings, plan.source
    loaded = source.load(optimizer=init.optimizer)
    sha256 = checkpoint.digest(loaded["params"]) if hosts.is_first() else None
    arrays = leaves(loaded)

    def place(path: Any, fresh: jax.Array) -> jax.Array:
        copy = plan.copies.get(path_names(path))
        return fresh if copy is None else _filled(fresh, copy, arrays)

    placed = jax.tree_util.tree_map_with_path(place, state)
    at, settings = source.step, (init.optimizer, init.fresh)
    origin = Origin(str(source.path), at, sha256, source.tokens, *settings)
    return placed, [origin, *source.lineage]


def _filled(fresh: jax.Array, copy: Copy, arrays: Mapping[Path, np.ndarray]) -> jax.Array:
    """An array like `fresh`, with its sharding, filled from the source."""
    places, stacked, growth = copy
    shards = {}
    if growth is not None or None in places:
        shards = {_key(shard.index, fresh.shape): shard.data for shard in fresh.addressable_shards}

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        ranges = _key(index, fresh.shape)
        if ranges in shards:
            values = np.array(shards[ranges])
        else:
            values = np.empty([stop - start for start, stop in ranges], fresh.dtype)
        rows = range(*ranges[0]) if stacked else [0]
        for i, row in enumerate(rows):
            if places[row] is not None:
                _fill(values[i] if stacked else values, places[row], ranges[stacked:])
        return values

    def _fill(values: np.ndarray, place: Place, ranges: Ranges) -> None:
        old = arrays[place.path]
        old = old if place.row is None else old[place.row]
        inner = [slice(start, stop) for start, stop in ranges]
        part = [slice(None)] * len(ranges)
        if growth is not None:
            start, stop = ranges[growth.axis]
            stop = max(min(stop, growth.kept), start)
            inner[growth.axis], part[growth.axis] = slice(start, stop), slice(0, stop - start)
        values[tuple(part)] = old[tuple(inner)]

    placed = jax.make_array_from_callback(fresh.shape, fresh.sharding, shard)
    placed.block_until_ready()
    fresh.delete()
    return placed


def _key(index: Sequence[slice], shape: Sequence[int]) -> Ranges:
    """The (start, stop) of a shard along each dimension."""
    return tuple(s.indices(size)[:2] for s, size in zip(index, shape))

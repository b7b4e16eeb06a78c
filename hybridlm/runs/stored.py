"""Arrays of a checkpoint, listed and read one at a time, by name.

Nothing of what wrote the checkpoint is needed: no devices, no mesh, no class of a train state.
"""

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from hybridlm import convert
from hybridlm.errors import ConfigError, RunError
from hybridlm.models import stack
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.runs import checkpoint, checksum, integrity, opened
from hybridlm.runs.json_files import read_settings
from hybridlm.runs.workdir import CONFIG
from hybridlm.settings.globs import select
from hybridlm.settings.reader import read_dataclass
from hybridlm.storage import open_path
from hybridlm.storage.orbax import orbax_path

PARAMS = "params"


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of a checkpoint that has not been read.

    Attributes:
      shape: of what `read` returns.
      dtype: as it is stored; of a checkpoint of transformers, `read` returns float32.
      read: reads it from the disk or the bucket.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
    """The arrays of a checkpoint by name, each read when it is asked for.

    Parameters have the names of docs/runs.md, whatever the stacking of layers:
    `checkpoint["layers.3.mixer.q.kernel"]`. Other arrays are named by their paths in the train
    state: `opt_state.0.mu.embedding`. Memory holds the array that is asked for, and at most twice
    its bytes while it is read and checked; of a layer that is stored in one array with others,
    at most that array. A whole array is compared with its checksum; a layer of a stacked array is
    not, because that would need the others (`hybridlm inspect --verify` reads all).

    Attributes:
      path: the run, model folder or checkpoint of transformers.
      step: None where the folder names none.
      arrays: by name, unread.
      model: its graph and settings; None if this program does not read them.
    """

    path: pathlib.Path
    step: int | None
    arrays: Mapping[str, StoredArray]
    model: Model | None

    def __getitem__(self, name: str) -> np.ndarray:
        """One array.

        Raises:
          RunError: if there is none of this name, it cannot be read or has changed.
        """
        if name not in self.arrays:
            near = difflib.get_close_matches(name, self.arrays, n=3, cutoff=0.5)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise RunError(f"the checkpoint in {self.path} has no array {name}{hint}")
        return self.arrays[name].read()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __iter__(self) -> Iterator[str]:
        """The names of the arrays; none is read."""
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def names(self, globs: str = "*") -> list[str]:
        """The names that match globs (`hybridlm.settings.globs`): "layers.3.mixer|head".

        Raises:
          ConfigError: if one matches nothing; it says which names are near.
        """
        return select(globs, self.arrays, "the names")

    def read(self, globs: str = "*") -> dict[str, np.ndarray]:
        """All arrays whose names match, as `names` says."""
        return {name: self[name] for name in self.names(globs)}

    def rows(self) -> list[dict[str, Any]]:
        """Name, shape, dtype and bytes of each array, as records."""
        return [
            {"name": name, "shape": x.shape, "dtype": x.dtype.name, "bytes": x.nbytes}
            for name, x in self.arrays.items()
        ]


def open_checkpoint(path: pathlib.Path | str, step: int | None = None) -> StoredCheckpoint:
    """Opens a run's checkpoint (default: the newest), a model folder or a checkpoint of transformers.

    Reads descriptions only. If the run's config is not one that this program reads (a mixer of
    another project), parameters have the names under which they are stored ("params.unit.0_a.…").

    Raises:
      RunError: if there is no such checkpoint or it cannot be read. ConvertError: as
        `hybridlm.convert.open_checkpoint`.
    """
    path = open_path(path)
    if convert.is_checkpoint(path):
        return _converted(path, step)
    if (path / CONFIG).is_file():
        step = checkpoint.find(path, step)
        folder, settings, remedy = (
            path / checkpoint.FOLDER / str(step),
            read_settings(path / CONFIG),
            checkpoint.REMEDY,
        )
    elif (path / opened.MODEL).is_file():
        settings = read_settings(path / opened.MODEL)
        step = opened.folder_step(settings, path, step)
        folder, remedy = path / opened.PARAMS, checkpoint.REWRITE
    else:
        raise RunError(f"{path} is no run and no model folder: it has no {CONFIG}")
    found = _Folder.of(folder, remedy)
    prefix = f"{PARAMS}/" if (path / CONFIG).is_file() else ""
    model = _model(settings)
    return StoredCheckpoint(path, step, found.named(model, prefix), model)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """An Orbax folder: layouts and checksums by path, "params/unit/0_a/mixer/q/kernel"."""

    path: pathlib.Path
    layouts: dict[str, Any]
    checksums: integrity.Checksums | None
    remedy: str

    @classmethod
    def of(cls, path: pathlib.Path, remedy: str) -> "_Folder":
        described, _ = checkpoint.describe_tree(path)
        path = orbax_path(path)
        with integrity.readable(path, remedy):
            saved = integrity.read_checksums(path)
            integrity.check_layouts(saved, described)
        return cls(path, checksum.named(described), saved, remedy)

    def named(self, model: Model | None, prefix: str) -> dict[str, StoredArray]:
        names = {} if model is None else _names(model, prefix)
        found, parameters = {}, {}
        for stored in self.layouts:
            if stored not in names:
                found[stored.replace("/", ".")] = self.array(stored)
                continue
            owners, stacked = names[stored]
            for row, name in enumerate(owners):
                parameters[name] = self.array(stored, row if stacked else None)
        order = {} if model is None else model.by_name(model.abstract)
        return {**{n: parameters[n] for n in order if n in parameters}, **found}

    def array(self, stored: str, row: int | None = None) -> StoredArray:
        layout = self.layouts[stored]
        shape = tuple(layout.shape) if row is None else tuple(layout.shape[1:])
        return StoredArray(shape, np.dtype(layout.dtype), lambda: self.read(stored, row))

    def read(self, stored: str, row: int | None) -> np.ndarray:
        with integrity.readable(self.path, self.remedy):
            array = integrity.open_array(self.path, stored)
            if row is not None:
                return array[row].read().result()
            found = array.read().result()
            if self.checksums is not None:
                now = checksum.checksums({stored: found}, self.checksums.version)
                faults = checksum.differences({stored: self.checksums.entries[stored]}, now)
                if faults:
                    raise integrity.DamagedError(faults)
            return found


def _names(model: Model, prefix: str) -> dict[str, tuple[tuple[str, ...], bool]]:
    """By stored path: the names of the parameters in the array, and whether they are its rows."""
    return {
        prefix + "/".join(path): (names, path[0] == stack.UNIT)
        for path, names in flatten_dict(model.names).items()
    }


def _model(settings: Any) -> Model | None:
    """The model of a run's settings; None if they are not settings that this program reads."""
    try:
        return Model.of(read_dataclass(ModelConfig, settings["model"], "model"))
    except (ConfigError, LookupError, TypeError):
        return None


def _converted(path: pathlib.Path, step: int | None) -> StoredCheckpoint:
    if step is not None:
        raise RunError(f"{path} is a checkpoint of transformers, which has no step {step}")
    found = opened.open_converted(path)
    shapes = found.model.by_name(found.model.abstract)
    arrays = {
        name: StoredArray(x.shape, found.dtypes[name], functools.partial(found.parameter, name))
        for name, x in shapes.items()
    }
    return StoredCheckpoint(path, None, arrays, found.model)

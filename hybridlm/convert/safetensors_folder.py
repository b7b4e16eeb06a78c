"""Reads and writes folders of safetensors files, sharded ones included, one tensor at a time.

The format: eight bytes with the length of a JSON header, the header (dtype, shape and place of each
tensor), and the data (https://github.com/huggingface/safetensors). A file is read by seeking, so
only the tensor that is asked for is in memory, and files in buckets are read in the same way.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from hybridlm.errors import ConvertError
from hybridlm.settings.json_text import parse_json
from hybridlm.storage.writing import make_folder, write_text, writing

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
#: Pickles, which run code when they are read.
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_MAX_HEADER = 100 * 2**20


class Tensors(Protocol):
    """The tensors of a checkpoint, without the numbers.

    Attributes:
      shapes: by name.
      dtypes: by name, as they are stored; float32 for GGUF's quantised types.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""


class _Place(NamedTuple):
    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class SafetensorsFolder:
    """The tensors of a folder.

    Attributes:
      places: of each tensor.
    """

    places: Mapping[str, _Place]

    @classmethod
    def open(cls, folder: pathlib.Path) -> "SafetensorsFolder":
        """Reads the headers of all files.

        Raises:
          ConvertError: if there is no safetensors file, one is missing or damaged, a tensor has a
            dtype that is not one of `DTYPES`, or the index and the files do not agree.
        """
        places: dict[str, _Place] = {}
        for file in _files(folder):
            header = _header(file)
            if twice := places.keys() & header.keys():
                raise ConvertError(f"{file}: the tensor {min(twice)} is in another file too")
            places |= header
        return cls(places)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: place.shape for name, place in self.places.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of each tensor, as the headers have it."""
        return {name: place.dtype for name, place in self.places.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""
        place = self.places[name]
        with place.file.open("rb") as file:
            file.seek(place.start)
            content = file.read(place.size)
        if len(content) != place.size:
            raise ConvertError(f"{place.file}: ends within the tensor {name}: copy it again")
        return np.frombuffer(content, place.dtype).reshape(place.shape)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        found = sorted(folder.glob("*.safetensors"))
        if len(found) == 1:
            return found
        raise ConvertError(_no_file(folder, found))
    try:
        names = parse_json(index.read_bytes())["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertError(f"{index}: is no index of safetensors files ({error!r})") from None
    files = [folder / name for name in sorted({*names}) if isinstance(name, str)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConvertError(
            f"{folder} has {len(files) - len(missing)} of the {len(files)} files that {INDEX} names:"
            f" {missing[0]} is missing"
        )
    return files


def _no_file(folder: pathlib.Path, found: Sequence[pathlib.Path]) -> str:
    if found:
        return f"{folder} has {len(found)} safetensors files and no {INDEX}, which says what is in each"
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has only pickles ({pickles[0]}), which run code when they are read: save the"
            " model as safetensors, with save_pretrained of transformers"
        )
    return f"{folder} has a config.json and no safetensors file"


def _header(path: pathlib.Path) -> dict[str, _Place]:
    """The place of each tensor of a file.

    Raises:
      ConvertError: if the file is not whole, or has a dtype that cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ConvertError(f"{path}: is no whole safetensors file: copy it again")
        try:
            header = parse_json(file.read(length))
            header.pop("__metadata__", None)
            entries = {name: _place(path, name, e, 8 + length) for name, e in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConvertError(f"{path}: its header cannot be read ({error!r})") from None
    end = max((place.start + place.size for place in entries.values()), default=8 + length)
    if end > size:
        raise ConvertError(f"{path}: has {size:,} of its {end:,} bytes: copy it again")
    return entries


def _place(path: pathlib.Path, name: str, entry: Mapping[str, Any], start: int) -> _Place:
    if entry["dtype"] not in DTYPES:
        raise ConvertError(
            f"{path}: {name} is {entry['dtype']}, and hybridlm reads {', '.join(DTYPES)}: quantised"
            " checkpoints must be saved in one of these first"
        )
    dtype, shape = DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
    first, last = entry["data_offsets"]
    size = math.prod(shape) * dtype.itemsize
    if last - first != size or min(shape, default=0) < 0 or first < 0:
        raise ValueError(f"{name} of shape {shape} has {last - first} bytes")
    return _Place(path, dtype, shape, start + first, size)


# --- writing ------------------------------------------------------------------------------------


def write(
    folder: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes tensors as `model.safetensors`, or as shards with an index if they are larger.

    Args:
      shapes: of all tensors, in the order in which `tensors` yields them.
      tensors: (name, array), cast to `dtype` one by one.
      dtype: a key of `DTYPES`.
      shard_bytes: bytes of a shard at most, except for a tensor that is larger.

    Raises:
      WriteError: if a file cannot be written.
    """
    itemsize = DTYPES[dtype].itemsize
    sizes = {name: math.prod(shape) * itemsize for name, shape in shapes.items()}
    shards = _sharded(sizes, shard_bytes)
    count = len(shards)
    names = [SINGLE]
    if count > 1:
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    make_folder(folder)
    arrays = iter(tensors)
    for file, shard in zip(names, shards):
        _write_file(folder / file, {n: shapes[n] for n in shard}, lambda: next(arrays), dtype)
    if count > 1:
        where = {name: file for file, shard in zip(names, shards) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        write_text(folder / INDEX, json.dumps(index, indent=2, allow_nan=False) + "\n")


def _sharded(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_file(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    following: Callable[[], tuple[str, np.ndarray]],
    dtype: str,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with writing(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            given, array = following()
            if given != name or tuple(array.shape) != tuple(shape):
                raise ValueError(f"{given} {array.shape} comes where {name} {shape} is written")
            file.write(np.ascontiguousarray(array, DTYPES[dtype]).tobytes())

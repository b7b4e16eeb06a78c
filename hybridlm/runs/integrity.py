"""Checksums in a checkpoint's metadata: sealed when it is saved, verified when it is read.

Orbax commits its custom metadata with the arrays, as JSON, so they are read without a device.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from hybridlm.errors import RunError, StorageError
from hybridlm.runs import checksum
from hybridlm.storage import is_remote
from hybridlm.storage.objects import Location, kvstore_spec

METADATA = "_CHECKPOINT_METADATA"  # Orbax's file for custom metadata
STATE = "state"  # Orbax's folder for the arrays
ARRAYS, VERSION, SEAL = "checksums", "checksum_version", "metadata_sha256"


class Checksums(NamedTuple):
    """The entries of `checksum.checksums` of a checkpoint, by array, and their version."""

    version: int
    entries: dict[str, str]


class DamagedError(Exception):
    """Arrays that differ from what was saved: what is wrong with each, by name."""

    def __init__(self, faults: Mapping[str, str]):
        super().__init__(listed(faults))


def _waiting(method: Callable[..., Any]) -> Callable[..., Any]:
    """A reading of `Sealed` that waits for what is missing."""

    @functools.wraps(method)
    def read(self, *arguments):
        self._complete()
        return method(self, *arguments)

    return read


class Sealed(dict):
    """Metadata that get the checksums of the arrays, and their seal, when they are first read.

    Orbax reads custom metadata in its own thread after it has written the arrays, so checksums are
    computed beside that. Whoever reads earlier waits for them, also for their number; only
    `repr` shows what is there.
    """

    def __init__(self, metadata: Mapping[str, Any], entries: Callable[[], dict[str, str]]):
        """Takes the metadata as they are now; `entries` waits for the checksums."""
        super().__init__(_plain({**metadata, VERSION: checksum.VERSION}))
        self._entries = entries

    def _complete(self) -> None:
        if not super().__contains__(SEAL):
            whole = {**dict(super().items()), ARRAYS: self._entries()}
            self.update({**whole, SEAL: _sha256(whole)})

    def __eq__(self, other: object) -> bool:
        return self.copy() == (other.copy() if isinstance(other, Sealed) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None
    __len__, __contains__ = _waiting(dict.__len__), _waiting(dict.__contains__)
    __iter__, __getitem__ = _waiting(dict.__iter__), _waiting(dict.__getitem__)
    get, copy = _waiting(dict.get), _waiting(dict.copy)
    keys, values, items = _waiting(dict.keys), _waiting(dict.values), _waiting(dict.items)


def sealed(metadata: Mapping[str, Any], state: Any) -> dict[str, Any]:
    """Metadata with the checksums of `state`'s arrays and a hash of all the metadata.

    The checksums are started, and what is returned waits for them when it is read (see
    `checksum.started` for what may happen to the arrays meanwhile). All hosts must call this,
    because arrays are read on the devices that hold them.
    """
    return Sealed(metadata, checksum.started(state))


def read_checksums(path: pathlib.Path) -> Checksums | None:
    """The checksums of the checkpoint folder `path`; None if it was saved without.

    Raises:
      DamagedError: if the metadata are not those that were saved.
    """
    try:
        metadata = json.loads((path / METADATA).read_bytes())["custom_metadata"] or {}
        if not metadata.keys() & {ARRAYS, VERSION, SEAL}:
            return None  # saved by a version without checksums
        seal = metadata.pop(SEAL)
        version, arrays = metadata[VERSION], metadata[ARRAYS]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError({METADATA: f"cannot be read ({_reason(error)})"}) from error
    if seal != _sha256(metadata):
        raise DamagedError({METADATA: "has changed since it was saved"})
    if version not in checksum.VERSIONS:
        raise DamagedError(
            {METADATA: f"has checksums of version {version}, newer than this program"}
        )
    return Checksums(version, arrays)


def check(saved: Checksums | None, state: Any, parts: Sequence[str] | None = None) -> None:
    """Checks that the arrays of `state` are those that were saved; no-op without checksums.

    Args:
      parts: the top-level keys that `state` has; None is all that were saved.

    Raises:
      DamagedError: naming the arrays that differ.
    """
    if saved is None:
        return
    entries = saved.entries
    if parts is not None:
        entries = {name: entry for name, entry in entries.items() if name.split("/")[0] in parts}
    faults = checksum.differences(entries, checksum.checksums(state, saved.version))
    if faults:
        raise DamagedError(faults)


def check_layouts(saved: Checksums | None, described: Any) -> None:
    """Checks the arrays' names, dtypes and shapes, before memory is allocated for them.

    Raises:
      DamagedError: naming the arrays that differ.
    """
    if saved is None:
        return
    layouts = {name: checksum.layout(x) for name, x in checksum.named(described).items()}
    if not layouts:  # Orbax logs why, and describes nothing
        raise ValueError(f"its {STATE}/_METADATA or {STATE}/_sharding is damaged")
    faults = checksum.differences(saved.entries, layouts)
    if faults:
        raise DamagedError(faults)


def verify(path: pathlib.Path) -> int | None:
    """Reads the checkpoint folder `path` array by array and compares all checksums.

    Returns:
      The number of arrays; None if they have no checksums: then each could be read, no more.

    Raises:
      DamagedError: naming each array that cannot be read or has changed.
    """
    saved = read_checksums(path)
    names = checksum.named(ocp.metadata(path).metadata) if saved is None else saved.entries
    faults = {name: fault for name in names if (fault := _array_fault(path, name, saved))}
    reasons = set(faults.values())
    if len(reasons) == 1 and len(faults) == len(names) > 1:
        raise DamagedError({"every array": reasons.pop()})
    if faults:
        raise DamagedError(faults)
    check_layouts(saved, ocp.metadata(path).metadata)
    return None if saved is None else len(saved.entries)


@contextlib.contextmanager
def readable(path: pathlib.Path, remedy: str) -> Iterator[None]:
    """Converts exceptions for a damaged checkpoint to a RunError: its path, the arrays, a remedy.

    If the reader did not say which array it could not read, the arrays are read one by one.
    """
    with late_arrays_dropped():
        try:
            yield
        except StorageError:
            raise  # a server that does not answer has damaged nothing
        except Exception as error:
            known = isinstance(error, DamagedError)
            reason = str(error) if known else _damage(path) or _reason(error)
            raise RunError(f"the checkpoint {path} cannot be read ({reason}): {remedy}") from error


@contextlib.contextmanager
def late_arrays_dropped() -> Iterator[None]:
    """Context in which arrays that arrive after a failed one are not reported.

    Orbax reads and writes arrays in an event loop, which it closes when one fails. TensorStore then
    hands it the others, and Python prints a traceback of "Event loop is closed" for each.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _damage(path: pathlib.Path) -> str | None:
    """What `verify` finds wrong; None if it finds nothing, or cannot look."""
    try:
        verify(path)
    except DamagedError as error:
        return str(error)
    except Exception:
        return None
    return None


def _array_fault(path: pathlib.Path, name: str, saved: Checksums | None) -> str | None:
    """What is wrong with one array, which is read alone and without Orbax; None if nothing is."""
    try:
        stored = open_array(path, name)
        if saved is not None:
            expected, layout = {name: saved.entries[name]}, _layout(stored)
            if faults := checksum.differences(expected, {name: layout}):
                return faults[name]  # unread: a damaged shape could ask for any memory
        array = stored.read().result()
        if saved is not None:
            found = checksum.checksums({name: array}, saved.version)
            return checksum.differences(expected, found).get(name)
    except Exception as error:
        return f"cannot be read ({_reason(error)})"
    return None


def open_array(path: pathlib.Path, name: str) -> tensorstore.TensorStore:
    """An array of the checkpoint folder `path`, by its path with "/"; reads its description only."""
    place = {"driver": "ocdbt", "base": _store(path), "path": name.replace("/", ".") + "/"}
    return tensorstore.open({"driver": "zarr3", "kvstore": place}).result()


def _store(path: pathlib.Path) -> dict[str, Any]:
    """TensorStore's description of the folder of a checkpoint's arrays."""
    folder = path / STATE
    if not is_remote(folder):
        return {"driver": "file", "path": f"{folder.absolute()}/"}
    spec = kvstore_spec(Location.of(folder))
    return {**spec, "path": spec["path"] + "/"}


def _layout(stored: tensorstore.TensorStore) -> str:
    return checksum.layout(np.broadcast_to(np.empty((), stored.dtype.numpy_dtype), stored.shape))


def listed(faults: Mapping[str, str], most: int = 4) -> str:
    """The first faults as one phrase."""
    shown = [f"{name} {fault}" for name, fault in list(faults.items())[:most]]
    more = f", and {len(faults) - most} more" if len(faults) > most else ""
    return ", ".join(shown) + more


def _reason(error: BaseException) -> str:
    """The error's text on one line: of TensorStore's its end, which names the file and the fault."""
    text = " ".join(str(error).split()).split(" [tensorstore_spec")[0]
    start = text.rfind("Error reading local file") if "OCDBT" in text else -1
    start = max(
        start, text.rfind("Error decoding local file"), text.rfind("Error reading Byte range")
    )
    return text[max(start, 0) :][:300]


def _sha256(metadata: Mapping[str, Any]) -> str:
    """Of the metadata as they are after JSON: lists for tuples, strings for keys."""
    text = json.dumps(_plain(metadata), sort_keys=True, allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(metadata, allow_nan=True))

"""Objects of a bucket, read and written through TensorStore's key-value stores.

TensorStore is what Orbax writes arrays with, so metadata, records and arrays use one client: the
same credentials, the same retries. A write is whole or absent, it is seen by every later read and
listing, and it may depend on the version of the object that it replaces.

An object is named by its URL, `gs://BUCKET/KEY` or `s3://BUCKET/KEY`.
"""

import errno
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from hybridlm import progress
from hybridlm.errors import StorageError

SCHEMES = {"gs": "gcs", "s3": "s3"}  # TensorStore's driver of each
SAY_AFTER = 2.0  # seconds of waiting for a server
GIVE_UP_AFTER = 300.0  # seconds; servers that answer 5xx are asked again until then
ABSENT = b"\x02"  # the version of an object that does not exist (TensorStore's encoding)
_UNKNOWN = bytes(9)
_STATUS = re.compile(
    r"(UNAVAILABLE|ABORTED|PERMISSION_DENIED|UNAUTHENTICATED|NOT_FOUND|INTERNAL)\b"
)
_READ = 16 << 20  # bytes of a range that a stream reads at once
_SHOWN = 240  # characters of a server's answer in an error


class Location(NamedTuple):
    """Where a URL points; `key` has no leading slash."""

    scheme: str
    bucket: str
    key: str

    @classmethod
    def of(cls, url: Any) -> "Location":
        scheme, _, rest = os.fspath(url).partition("://")
        bucket, _, key = rest.partition("/")
        return cls(scheme, bucket, key.strip("/"))

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"


class Version(NamedTuple):
    """An object as it was read.

    Attributes:
      data: None if it does not exist.
      version: None if the server does not tell, as Google's emulator does not.
    """

    data: bytes | None
    version: bytes | None


_guards: dict[str, Callable[[], None]] = {}


def guard(folder: str, check: Callable[[], None]) -> None:
    """Calls `check` before each write and deletion below a folder; what it raises prevents it."""
    _guards[f"{folder.rstrip('/')}/"] = check


def unguard(folder: str) -> None:
    _guards.pop(f"{folder.rstrip('/')}/", None)


def kvstore_spec(location: Location) -> dict[str, Any]:
    """TensorStore's description of the store that holds a location, its key as the path.

    Endpoints other than the clouds' own come from the variables that their other clients read:
    AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and STORAGE_EMULATOR_HOST.
    """
    spec = {"driver": SCHEMES[location.scheme], "bucket": location.bucket, "path": location.key}
    if location.scheme == "gs":
        if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
            os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)  # it has no setting
        return spec
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        spec["endpoint"], region = endpoint, region or "us-east-1"
    if region:
        spec["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:  # without this, it complains of missing ~/.aws files
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def read(url: Any) -> bytes | None:
    """The content of an object; None if there is none."""
    return read_version(url).data


def read_version(url: Any) -> Version:
    """The content of an object, and the version that a later write may depend on."""
    store, at = _store_of(url)
    result = _wait(lambda: store.read(at.key), "reading", at.url)
    if result.state != "value":
        return Version(None, ABSENT)
    version = result.stamp.generation
    return Version(bytes(result.value), None if version == _UNKNOWN else version)


def read_range(url: Any, start: int, stop: int) -> bytes:
    """The bytes `start` to `stop` of an object that has as many.

    Raises:
      StorageError: if the object is shorter, or absent.
    """
    store, at = _store_of(url)
    asked = slice(start, stop)
    result = _wait(lambda: store.read(at.key, byte_range=asked), "reading", at.url)
    if result.state != "value":
        raise StorageError(f"{at.url} does not exist")
    return bytes(result.value)


def write(
    url: Any, data: bytes, if_version: bytes | None = None, guarded: bool = True
) -> bytes | None:
    """Writes an object whole, and returns its version.

    Args:
      if_version: write only if the object's version is this one (`ABSENT`: if it does not exist).
      guarded: False for what the guards themselves write.

    Returns:
      None if the object has another version; nothing is written then.
    """
    store, at = _store_of(url)
    if guarded:
        _check_guards(at.url)
    if not data and at.scheme == "gs" and "TENSORSTORE_GCS_HTTP_URL" in os.environ:
        data = b"\n"  # Google's emulator fails at empty uploads; Orbax makes files without content
    stamp = _wait(lambda: store.write(at.key, data, if_equal=if_version), "writing", at.url)
    return stamp.generation or None


def delete(url: Any, if_version: bytes | None = None) -> bool:
    """Deletes an object if there is one; False if it has another version than `if_version`."""
    store, at = _store_of(url)
    _check_guards(at.url)
    stamp = _wait(lambda: store.write(at.key, None, if_equal=if_version), "deleting", at.url)
    return if_version is None or bool(stamp.generation)


def exists(url: Any) -> bool:
    """Whether there is an object of this name."""
    return version(url) != ABSENT


def version(url: Any) -> bytes | None:
    """The version of an object; None if the server does not tell, `ABSENT` without an object."""
    store, at = _store_of(url)
    nothing = slice(0, 0)  # an empty range: the server sends no content
    result = _wait(lambda: store.read(at.key, byte_range=nothing), "reading", at.url)
    if result.state != "value":
        return ABSENT
    return None if result.stamp.generation == _UNKNOWN else result.stamp.generation


def keys(url: Any) -> list[str]:
    """Names of the objects below a folder, relative to it, sorted: "a", "b/c"."""
    store, at = _store_of(url)
    prefix = f"{at.key}/" if at.key else ""
    within = _key_range(prefix)
    found = (key.decode() for key in _wait(lambda: store.list(within), "listing", f"{at.url}/"))
    # Google's emulator does not know ranges, and lists the whole bucket.
    return sorted(key[len(prefix) :] for key in found if key.startswith(prefix) and key != prefix)


def delete_tree(url: Any, first: Iterable[str] = ()) -> None:
    """Deletes all objects below a folder.

    Args:
      first: base names of objects that are deleted before the others: without them, a reader
        does not take what is left for whole.
    """
    store, at = _store_of(url)
    _check_guards(f"{at.url}/")
    names, marks = keys(url), set(first)
    marked = [name for name in names if name.rpartition("/")[2] in marks]
    for group in (marked, [name for name in names if name not in set(marked)]):
        futures = [store.write(f"{at.key}/{name}".lstrip("/"), None) for name in group]
        for name, future in zip(group, futures):
            _wait(lambda: future, "deleting", f"{at.url}/{name}")  # noqa: B023


def stream(url: Any) -> Iterator[bytes]:
    """The content of an object in ranges of 16 MiB, so that a large one need not fit in memory.

    Raises:
      FileNotFoundError: if there is no such object.
      StorageError: if it is replaced meanwhile.
    """
    store, at = _store_of(url)

    def read_from(start: int, stop: int | None) -> Any:
        # The byte before is read again: a range must not begin where the object ends.
        asked = slice(max(start - 1, 0), stop)
        return _wait(lambda: store.read(at.key, byte_range=asked), "reading", at.url)

    start, version = 0, None
    while True:
        try:
            result, last = read_from(start, start + _READ), False
        except _ShorterObject:
            result, last = read_from(start, None), True
        if result.state != "value":
            raise FileNotFoundError(errno.ENOENT, "there is no such object", at.url)
        if result.stamp.generation != (version or result.stamp.generation):
            raise StorageError(f"{at.url} was replaced while it was read")
        version = result.stamp.generation
        yield bytes(result.value[1:] if start else result.value)
        if last:
            return
        start += _READ


def _check_guards(url: str) -> None:
    for folder, check in list(_guards.items()):
        if url.startswith(folder):
            check()


def is_refusal(error: Exception) -> bool:
    """Whether an exception is TensorStore's for a request that a server refused or did not answer."""
    return isinstance(error, ValueError) and _STATUS.match(str(error)) is not None


class _ShorterObject(Exception):
    """The object has fewer bytes than were asked for."""


def _key_range(prefix: str) -> Any:
    import tensorstore as ts

    # A prefix is empty or ends with "/", which "0" follows.
    return ts.KvStore.KeyRange(prefix, f"{prefix[:-1]}0" if prefix else "")


def _store_of(url: Any) -> tuple[Any, Location]:
    at = Location.of(url)
    return _open(at.scheme, at.bucket, os.getpid()), at


@functools.cache
def _open(scheme: str, bucket: str, process: int) -> Any:
    """The store of a bucket; a forked process opens its own."""
    import tensorstore as ts

    spec = kvstore_spec(Location(scheme, bucket, ""))
    # TensorStore waits longer after each refusal; `_wait` says so, and gives up in the end.
    spec[f"{SCHEMES[scheme]}_request_retries"] = {
        "max_retries": 64,
        "initial_delay": "500ms",
        "max_delay": "10s",
    }
    return _wait(lambda: ts.KvStore.open(spec), "opening", f"{scheme}://{bucket}")


def _wait(start: Callable[[], Any], doing: str, url: str) -> Any:
    """The result of a request; says what it waits for after 2 seconds.

    Raises:
      StorageError: if the server refuses it, or does not answer for `GIVE_UP_AFTER` seconds.
    """
    began, patience = time.monotonic(), SAY_AFTER
    future = start()
    while True:
        try:
            return future.result(timeout=patience)
        except TimeoutError:
            waited = time.monotonic() - began
            if waited >= GIVE_UP_AFTER:
                future.cancel()
                raise StorageError(
                    f"{doing} {url} failed: its server did not answer, or answered with errors of its"
                    f" own, for {waited:.0f} seconds; start the same command again to go on"
                ) from None
            progress.write(sys.stderr, f"hybridlm: {doing} {url}: no answer for {waited:.0f} s")
            patience = min(waited * 2, GIVE_UP_AFTER - waited)
        except ValueError as error:  # TensorStore's, which begins with the status
            raise _mended(str(error), doing, url) from None


def _mended(text: str, doing: str, url: str) -> Exception:
    """An exception with a sentence for a status of TensorStore."""
    status, _, reason = " ".join(text.split()).partition(": ")
    if status == "OUT_OF_RANGE":
        return _ShorterObject(url)
    reason = reason.partition(" [")[0][:_SHOWN]  # what follows describes the request
    at = Location.of(url)
    if status == "NOT_FOUND":
        reason = f"there is no bucket {at.bucket}: make it, or name another ({reason})"
    elif status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        reason = f"the credentials of this process do not allow it ({reason}), see docs/storage.md"
    else:
        reason = f"{status} {reason}"
    return StorageError(f"{doing} {url} failed: {reason}")

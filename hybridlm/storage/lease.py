"""The lease of a folder in a bucket: one process at a time writes there.

A bucket has no locks. The holder writes the object `.lease` on the condition that it is absent, and
writes it again every `REFRESH` seconds on the condition that it is the one that it wrote. A
lease that nobody has written for `EXPIRES` seconds, as its reader's own clock counts them, may be
taken over. While the lease is held, `objects.guard` refuses writes below the folder once it is lost
or could have been taken over, so that a process that was stopped for a while writes nothing more.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from typing import Any

from hybridlm import progress
from hybridlm.errors import RunError, StorageError
from hybridlm.storage import objects

NAME = ".lease"
REFRESH = 15.0  # seconds
EXPIRES = 60.0  # seconds
_POLL = 1.0  # seconds between two looks at another's lease
_SETTLE = 2.0  # seconds; for servers that ignore conditions


class Lease:
    """A held lease; `close` gives it up.

    Args:
      folder: `gs://…` or `s3://…`.
      refresh, expires: seconds.

    Raises:
      RunError: if another process holds it.
    """

    def __init__(self, folder: Any, *, refresh: float = REFRESH, expires: float = EXPIRES):
        self._folder, self._url = os.fspath(folder), f"{os.fspath(folder)}/{NAME}"
        self._refresh_seconds, self._expires = refresh, expires
        self._owner = _owner()
        self._lost: str | None = None
        self._lock = threading.RLock()
        self._take()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        objects.guard(self._folder, self.check)

    def check(self) -> None:
        """Returns while the lease is held.

        Raises:
          RunError: once another process has taken it over.
        """
        if time.monotonic() - self._written >= self._expires and self._lost is None:
            self._refresh()  # nobody knows whether it is still held
        if self._lost is not None:
            raise RunError(self._lost)

    def close(self) -> None:
        """Gives the lease up, so that the next process need not wait."""
        self._ended.set()
        self._thread.join(timeout=10)
        objects.unguard(self._folder)
        with contextlib.suppress(StorageError), self._lock:
            found = objects.read_version(self._url)
            if _read(found.data).get("id") == self._owner["id"]:
                objects.delete(self._url, found.version)

    def _take(self) -> None:
        """Writes the lease, or waits until another's has expired."""
        found, since, said = objects.read_version(self._url), time.monotonic(), False
        while found.data is not None:
            holder = _read(found.data)
            alive = _alive(holder)
            if alive is False or time.monotonic() - since >= self._expires:
                break
            if alive:
                raise RunError(self._refusal(holder))
            if not said:
                said = True
                progress.write(
                    sys.stderr,
                    f"hybridlm: {_named(holder)} holds {self._folder}: waiting for {self._expires:.0f} s"
                    " to see whether it still runs",
                )
            time.sleep(min(_POLL, self._expires / 10))
            now = objects.read_version(self._url)
            if now.data not in (None, found.data):
                raise RunError(self._refusal(_read(now.data)))
            found = found if now.data is not None else now
        if not self._write(found.version):
            raise RunError(self._refusal(_read(objects.read(self._url))))
        self._settle(found.version)

    def _settle(self, before: bytes | None) -> None:
        """Finds out whether the server refuses a write on a false condition; if not, waits.

        Two processes that took the lease at once both believe that they hold it then: the one
        whose object is there after a while does.
        """
        if not self._write(before):
            return
        time.sleep(_SETTLE)
        holder = _read(objects.read(self._url))
        if holder.get("id") != self._owner["id"]:
            raise RunError(self._refusal(holder))

    def _write(self, if_version: bytes | None) -> bool:
        began = time.monotonic()
        content = json.dumps(
            {**self._owner, "nonce": secrets.token_hex(8)}, allow_nan=False
        ).encode()
        if objects.write(self._url, content, if_version, guarded=False) is None:
            # The answer to a write that did happen may have been lost, and the write repeated.
            if objects.read(self._url) != content:
                return False
        self._written = began
        return True

    def _refresh(self) -> None:
        with self._lock:
            found = objects.read_version(self._url)
            holder = _read(found.data)
            if holder.get("id") == self._owner["id"] and self._write(found.version):
                return
            holder = _read(objects.read(self._url))
            by = f"{_named(holder)} has taken it over" if holder else f"{self._url} was removed"
            self._lost = (
                f"this process has lost the lease of {self._folder} ({by}): it stops, and writes"
                " nothing more there"
            )

    def _keep(self) -> None:
        while not self._ended.wait(self._refresh_seconds) and self._lost is None:
            with contextlib.suppress(StorageError):  # `check` tries again before a write
                self._refresh()

    def _refusal(self, holder: dict[str, Any]) -> str:
        return (
            f"another process is training in {self._folder}: {_named(holder)}; if it has ended,"
            f" remove {self._url}"
        )


def _owner() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "id": secrets.token_hex(8),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "place": _place(),
        "since": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _place() -> str:
    """This boot of this machine, and the namespace of its process ids; empty if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _alive(holder: dict[str, Any]) -> bool | None:
    """Whether the holder runs; None if it is on another machine."""
    if not holder.get("place") or holder["place"] != _place():
        return None
    return pathlib.Path(f"/proc/{holder.get('pid')}").exists()


def _read(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    return (
        f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since"
        f" {holder.get('since', '?')}"
    )

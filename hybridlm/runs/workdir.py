"""The folder of a run: its lock, and the files that describe the run."""

import dataclasses
import fcntl
import functools
import os
import pathlib
import platform
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata as packages
from typing import Any, NamedTuple

from hybridlm.errors import RunError
from hybridlm.runs import checkpoint, metrics
from hybridlm.runs.json_files import read_json, read_object, read_settings, write_json
from hybridlm.settings.plain import flat
from hybridlm.storage import is_remote, objects, open_path, own_name
from hybridlm.storage.lease import Lease
from hybridlm.storage.mirror import Mirror
from hybridlm.storage.writing import write_text, writing

Settings = dict[str, Any]
CONFIG, ENVIRONMENT, REPORT = "config.json", "environment.json", "report.html"
ID = ".id"  # the run's id, until ENVIRONMENT has it


class RunSettings(NamedTuple):
    """The settings of a run, which must match its folder's `config.json` on resume.

    Attributes:
      settings: plain and nested, as in `config.json`.
      free: prefixes of the dotted keys that may change on resume.
      complete: adds to the settings of an older `config.json` the keys that are newer than the
        run, with their defaults.
      length: dotted keys that may change together if `why_not` allows it.
      why_not: (path, old settings, new settings, steps of the checkpoints) -> one sentence that
        says why `length` may not change to the new settings; None if it may.
    """

    settings: Settings
    free: tuple[str, ...]
    complete: Callable[[Settings], Settings]
    length: tuple[str, ...]
    why_not: Callable[[pathlib.Path, Settings, Settings, list[int]], str | None]


@dataclasses.dataclass(frozen=True)
class Workdir:
    """An opened, locked workdir; `close` or the end of the process unlocks it.

    Attributes:
      path: the folder, here or in a bucket.
      lock: the lock of a folder of this machine, the lease of one in a bucket; None where the
        folder is not written.
      mirror: uploads the files that grow to a bucket.
    """

    path: pathlib.Path
    lock: Any
    mirror: Mirror | None = None

    @functools.cached_property
    def run_id(self) -> str:
        """See the function `run_id`."""
        return run_id(self.path)

    def keep_id(self) -> str:
        """`run_id`; later starts have the same one, even if this start fails before it is recorded.

        Raises:
          WriteError: if the file of the id cannot be written.
        """
        if not (self.path / ENVIRONMENT).exists():
            write_text(self.path / ID, self.run_id)
        return self.run_id

    @property
    def local(self) -> pathlib.Path:
        """The folder of this machine for files that grow: `path`, or the mirror's."""
        return self.path if self.mirror is None else self.mirror.local

    @classmethod
    def follow(cls, path: pathlib.Path, run: RunSettings) -> "Workdir":
        """Opens the folder without a lock, on a host that does not write to it; see `open`.

        Raises:
          RunError: if the run in it has other settings, or the folder is not shared.
        """
        if not is_remote(path) and not path.is_dir():
            raise RunError(
                f"--workdir {path} does not exist: all hosts need the same, shared folder"
            )
        check_same_run(path, run)
        return cls(path, None)

    @classmethod
    def open(cls, path: os.PathLike[str] | str, run: RunSettings) -> "Workdir":
        """Locks the folder, and checks that a run in it has the same settings.

        Raises:
          RunError: if another process trains in it, or the run in it has other settings.
          WriteError: if it cannot be written.
        """
        path = open_path(path)
        if is_remote(path):
            return cls._open_remote(path, run)
        if path.exists() and not path.is_dir():
            raise RunError(f"--workdir {path} is a file: name a folder")
        with writing(f"--workdir {path}"):
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process is training in {path}") from None
        check_same_run(path, run)
        return cls(path, lock)

    @classmethod
    def _open_remote(cls, path: pathlib.Path, run: RunSettings) -> "Workdir":
        check_same_run(path, run)  # before the lease, which may have to be waited for
        lease = Lease(path)
        mirror = Mirror(os.fspath(path))
        try:
            check_same_run(path, run)
            for name in objects.keys(path):
                if name.endswith(".jsonl") and "/" not in name:
                    mirror.download(name)
        except BaseException:
            mirror.discard()
            lease.close()
            raise
        return cls(path, lease, mirror)

    def begin(self, settings: Settings) -> Settings | None:
        """Writes `config.json`: before this, a failed start leaves the folder free for other runs.

        Returns:
          What the file held before; None in a new run.
        """
        file = self.path / CONFIG
        before = read_json(file) if file.exists() else None
        write_json(file, settings)
        return before

    def uploads(self) -> list[metrics.Writer]:
        """What must come after the writers of files in `local`, so that a flush stores them."""
        return [] if self.mirror is None else [_Uploads(self.mirror)]

    def close(self) -> None:
        """Uploads what has grown since, and unlocks the folder."""
        try:
            if self.mirror is not None:
                self.mirror.close()
        finally:
            if self.lock is not None:
                self.lock.close()


class _Uploads:
    """A writer whose `flush` uploads the files that the writers before it have written."""

    def __init__(self, mirror: Mirror):
        self._mirror = mirror

    def write(self, record: metrics.Record) -> None:
        self._mirror.check()

    def flush(self) -> None:
        self._mirror.upload()

    def close(self) -> None:
        self._mirror.upload()


def check_same_run(path: pathlib.Path, run: RunSettings) -> None:
    """Checks that the run in `path`, if there is one, has the settings of `run`.

    Raises:
      RunError: if settings differ; it names the keys.
    """
    if not (path / CONFIG).exists():
        return
    settings = run.complete(read_settings(path / CONFIG))
    old, new = flat(settings), flat(run.settings)
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    changed = [k for k in changed if not k.startswith(run.free)]
    if changed and set(changed) <= set(run.length):
        refusal = run.why_not(path, settings, run.settings, checkpoint.steps(path))
        if refusal:
            raise RunError(refusal)
    elif changed:
        shown = ", ".join(f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise RunError(
            f"{path} holds a run of another config ({shown}{more}): use another --workdir, or the"
            " config it was started with"
        )


def run_id(path: pathlib.Path) -> str:
    """The name of the run in `path` among all runs, which other services know it by.

    It is drawn at the first start, because folders' names recur; `Workdir.keep_id` and
    `record_environment` keep it.
    """
    if earlier := _environment(path):
        # Before ids were kept, Weights & Biases knew a run by its folder's name.
        return earlier.get("id", own_name(path))
    kept = (path / ID).read_bytes() if (path / ID).exists() else b""
    return kept.decode() if re.fullmatch(rb"[0-9a-f]{16}", kept) else secrets.token_hex(8)


def record_environment(path: pathlib.Path, devices: list[Any], name: str) -> None:
    """Writes what is needed to repeat the run; `sessions` keeps the times of earlier starts.

    Args:
      name: the `run_id`.
    """
    earlier = _environment(path)
    environment = {
        "id": name,
        "command": shlex.join(["hybridlm", *sys.argv[1:]]),
        "folder": pathlib.Path.cwd().name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "devices": [f"{d.device_kind} ({d.platform})" for d in devices],
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain")),
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {
            name: os.environ[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS") if name in os.environ
        },
    }
    sessions = [*earlier.get("sessions", []), environment["started"]]
    write_json(path / ENVIRONMENT, {**environment, "sessions": sessions})
    (path / ID).unlink(missing_ok=True)


def _environment(path: pathlib.Path) -> dict[str, Any]:
    """What was recorded at the last start; {} in a new run."""
    target = path / ENVIRONMENT
    return read_object(target) if target.exists() else {}


PACKAGES = (
    "hybridlm",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "ml-collections",
    "numpy",
)


def _version(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    source = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(source), *command], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

"""The folder of a run: who may write to it, and the files that say what the run is."""

import dataclasses
import fcntl
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

from hybridlm.config.schema import Config, flat, to_dict
from hybridlm.errors import RunError

CONFIG, ENVIRONMENT, REPORT = "config.json", "environment.json", "report.html"

# Settings that change how a run is carried out and watched, not what it computes.
FREE_ON_RESUME = (
    "mesh.",
    "sample.",
    "probes.",
    "data.prefetch",
    "data.verify",
    "data.token_cache",
    "train.log_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.checkpoint_every",
    "train.tensorboard",
    "train.wandb",
    "train.abort_after",
    "train.hang_seconds",
)


@dataclasses.dataclass(frozen=True)
class Workdir:
    """An opened, locked workdir; `close` gives it up (as does the end of the process)."""

    path: pathlib.Path
    lock: Any

    @classmethod
    def follow(cls, path: pathlib.Path, config: Config) -> "Workdir":
        """The folder of a run that another host has opened and writes to.

        Raises:
          RunError: where the run there is of another config, or the folder is not shared.
        """
        if not path.is_dir():
            raise RunError(f"--workdir {path} is not there: all hosts need the same, shared folder")
        check_same_run(path, config)
        return cls(path, None)

    @classmethod
    def open(cls, path: os.PathLike[str] | str, config: Config) -> "Workdir":
        """Locks the folder, and holds a run found there to the config that it was started with.

        Raises:
          RunError: where another process trains there, or the run there is of another config.
        """
        path = pathlib.Path(path)
        if path.exists() and not path.is_dir():
            raise RunError(f"--workdir {path} is a file: name a folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("a+")
        except OSError as error:
            raise RunError(f"--workdir {path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process is training in {path}") from None
        check_same_run(path, config)
        return cls(path, lock)

    def begin(self, config: Config) -> None:
        """Makes the folder the run of `config`; until then a start that failed leaves no claim."""
        write_json(self.path / CONFIG, to_dict(config))

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()


def check_same_run(path: pathlib.Path, config: Config) -> None:
    """Holds a run that lies in `path`, if one does, to `config`, `FREE_ON_RESUME` aside.

    Raises:
      RunError: where it is of another config, naming the keys that differ.
    """
    if not (path / CONFIG).exists():
        return
    old, new = flat(read_json(path / CONFIG)), flat(to_dict(config))
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    changed = [k for k in changed if not k.startswith(FREE_ON_RESUME)]
    if changed:
        shown = ", ".join(f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise RunError(
            f"{path} holds a run of another config ({shown}{more}): use another --workdir, or the"
            " config it was started with"
        )


def record_environment(path: pathlib.Path, devices: list[Any]) -> dict[str, Any]:
    """Writes what it takes to run this again; an earlier session's is kept under `sessions`."""
    environment = {
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
    target = path / ENVIRONMENT
    earlier = read_json(target).get("sessions", []) if target.exists() else []
    write_json(target, {**environment, "sessions": [*earlier, environment["started"]]})
    return environment


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


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file at once or not at all."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file of a run.

    Raises:
      RunError: where it is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
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

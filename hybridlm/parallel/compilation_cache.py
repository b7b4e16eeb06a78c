"""JAX's persistent compilation cache, on by default: a program is compiled once per machine type.

Programs are kept in a folder of the user, one for each type of processor, because a program that was
compiled for one processor may use instructions that another lacks. JAX locks the folder while it
reads or writes an entry and removes the entries that were not used for longest. Of several hosts
only the first writes.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys
import tempfile
import warnings
import zlib
from typing import Any

import filelock
import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from hybridlm.errors import UserError
from hybridlm.storage import is_remote

MAX_BYTES = 5 * 10**9  # of the folder; JAX's own limit, if it is set, goes before
# JAX's default of 1 s leaves out most programs of a start: dozens that take 0.1 s each.
MIN_COMPILE_SECONDS = 0.0
LOCK_SECONDS = 10
_DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
_CHECKED = ".checked"  # its modification time is that of the last search for damaged entries
_ENTRIES = "*-cache"
_ZSTD = b"\x28\xb5\x2f\xfd"


def use(setting: str) -> None:
    """Keeps compiled programs of this process on disk, and takes them from there.

    If `JAX_COMPILATION_CACHE_DIR` is set, JAX uses that folder as it does without hybridlm. A folder
    that cannot be written costs one line on stderr, and programs are compiled anew.

    Args:
      setting: "auto" for the user's folder (see `user_folder`), "off", or another folder.
    """
    wanted = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() not in ("0", "false", "no")
    jax.config.update("jax_enable_compilation_cache", wanted and setting != "off")
    _warn_in_one_line()
    if not wanted or setting == "off" or os.environ.get(_DIRECTORY):
        jax_cache.reset_cache()  # a cache of an earlier command in this process
        return
    if is_remote(setting):
        raise UserError(f"--compilation_cache {setting} is no folder of this machine: name one")
    folder = pathlib.Path(setting)
    try:
        root = user_folder() if setting == "auto" else folder.expanduser()
        folder = root / processor()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        remove_damaged(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        reason = getattr(error, "strerror", None) or error
        _say(f"{folder} cannot be written ({reason}): it is not used")
        jax.config.update("jax_enable_compilation_cache", False)
        return
    for name, value in (
        ("jax_compilation_cache_max_size", MAX_BYTES),
        ("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS),
    ):
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax_cache.reset_cache()


def user_folder() -> pathlib.Path:
    """`hybridlm/compiled` in XDG_CACHE_HOME, or in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "hybridlm" / "compiled"


def processor() -> str:
    """A name for this type of processor, equal on machines with the same model and instructions."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        keys = ("model name", "flags", "Features", "CPU part")
        kept = sorted(line for line in text.splitlines() if line.startswith(keys))
    except OSError:
        kept = [platform.processor()]
    digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def remove_damaged(folder: pathlib.Path) -> int:
    """Removes entries that a killed process or a full disk left incomplete; returns their number.

    JAX does not write an entry atomically and does not replace one that it cannot read. An entry is
    checked once: at the first start after it was written.

    Raises:
      OSError: if the folder cannot be read or written.
    """
    removed, stamp = 0, folder / _CHECKED
    try:
        # JAX holds this lock while it writes an entry.
        with filelock.FileLock(folder / ".lockfile", timeout=LOCK_SECONDS):
            since = stamp.stat().st_mtime_ns if stamp.exists() else 0
            for entry in folder.glob(_ENTRIES):
                if entry.stat().st_mtime_ns >= since and not _complete(entry.read_bytes()):
                    entry.unlink()
                    removed += 1
            stamp.touch()
    except filelock.Timeout:  # another process is slow: its entries are checked at the next start
        pass
    return removed


def _complete(entry: bytes) -> bool:
    """Whether an entry can be decompressed to its end; True where its decompressor is missing."""
    if not entry.startswith(_ZSTD):
        with contextlib.suppress(zlib.error):
            zlib.decompress(entry)
            return True
        return False
    try:  # JAX's own choice: Python's module, else the package
        from compression import zstd
    except ImportError:
        try:
            import zstandard
        except ImportError:
            return True
        with contextlib.suppress(zstandard.ZstdError):
            zstandard.ZstdDecompressor().decompress(entry)
            return True
        return False
    with contextlib.suppress(zstd.ZstdError):
        zstd.decompress(entry)
        return True
    return False


def _warn_in_one_line() -> None:
    """Makes JAX's warnings of entries that it cannot read or write one line of each kind."""
    show, said = getattr(warnings.showwarning, "others", warnings.showwarning), set()

    def showwarning(message: Any, *place: Any, **more: Any) -> None:
        text = " ".join(str(message).split())
        if "persistent compilation cache" not in text:
            show(message, *place, **more)
            return
        kind = "written" if "writing" in text else "read"
        if kind not in said:
            said.add(kind)
            folder, reason = jax.config.jax_compilation_cache_dir, text.rpartition("': ")[2]
            _say(f"an entry in {folder} cannot be {kind} ({reason}): its program is compiled anew")

    showwarning.others = show
    warnings.showwarning = showwarning


def _say(text: str) -> None:
    print(f"hybridlm: compilation cache: {text}", file=sys.stderr, flush=True)

"""Packages for a machine without a package index: wheels to carry there, and their installation.

The machine has Python 3.12, jax with its CUDA plugin, torch, triton and what they need. What else this
project and the compared libraries need is `PACKAGES`, in the versions of constraints.txt.
"""

import os
import pathlib
import subprocess
import sys

from benchmarks.gpu_visit.runner import ROOT

PACKAGES = (
    "grain",
    "array_record",
    "portpicker",
    "ml_collections",
    "tensorboardX",
    "etils",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "treescope",
    "jaxtyping",
    "filelock",
    "tokenizers",
)
#: Other projects' forms, which constraints.txt does not name.
COMPARED = ("jax-linear-attention==0.1.0", "equinox", "wadler_lindig", "fla-core")
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]
TRANSFER = 64 * 2**20  # bytes that may travel at once: the clone's files and the wheels
MARGIN = 4 * 2**20  # of them, for what else is carried


def tree_bytes(root: pathlib.Path = ROOT) -> int:
    """Bytes of the files that travel with the wheels: those that git tracks, and new ones that it does not
    ignore.

    Raises:
      RuntimeError: where `root` is no clone.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"git cannot list the files of {root}: {done.stderr.decode().strip()}")
    paths = (root / os.fsdecode(name) for name in set(done.stdout.split(b"\0")) if name)
    return sum(path.lstat().st_size for path in paths if path.is_symlink() or path.is_file())


def most(root: pathlib.Path = ROOT) -> int:
    """Bytes that wheels may have beside the tree."""
    return max(0, TRANSFER - MARGIN - tree_bytes(root))


def download(folder: pathlib.Path) -> int:
    """Fetches the wheels, without what they need, into a folder; returns their bytes.

    Raises:
      RuntimeError: where pip does not find one, or they are larger than `most` together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    target += [part for name in PLATFORMS for part in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *target]
    command += ["-d", str(folder), "-c", str(ROOT / "constraints.txt"), *PACKAGES, *COMPARED]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not fetch the wheels: {done.stderr.strip()[-400:]}")
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    room = most()
    if size > room:
        raise RuntimeError(
            f"the wheels are {_mib(size)}, and at most {_mib(room)} may travel: the limit is"
            f" {_mib(TRANSFER)}, less {_mib(tree_bytes())} of the clone and {_mib(MARGIN)} to spare"
        )
    return size


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def install(folder: pathlib.Path, site: pathlib.Path, seconds: float = 60.0) -> str:
    """Installs the wheels of a folder into `site`, from that folder alone; returns what went wrong."""
    wheels = sorted(str(path) for path in folder.glob("*.whl"))
    if not wheels:
        return f"there are no wheels in {folder}"
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), *wheels]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"pip had not installed the wheels after {seconds:.0f} s"
    return done.stderr.strip()[-400:] if done.returncode else ""

"""Packages for a machine without a package index: wheels to carry there, and their installation.

The machine has Python 3.12, jax with its CUDA plugin, torch, triton and what they need. What else this
project and the compared libraries need is `PACKAGES`, in the versions of constraints.txt.
"""

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
MOST = 48 * 2**20  # bytes


def download(folder: pathlib.Path) -> int:
    """Fetches the wheels, without what they need, into a folder; returns their bytes.

    Raises:
      RuntimeError: where pip finds one not, or they are larger than `MOST` together.
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
    if size > MOST:
        raise RuntimeError(f"the wheels are {size >> 20} MiB, and at most {MOST >> 20} may travel")
    return size


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

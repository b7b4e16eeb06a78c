"""Virtual environments for what cannot share this project's: PyTorch, and other libraries."""

import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence

TORCH = "torch==2.13.0"
# Settings of the machine's user that would change one library and not the others.
UNSET = (
    "PYTHONPATH PYTHONHOME XLA_FLAGS OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS"
).split()


class Unavailable(Exception):
    """An environment or what runs in it cannot be had here; one sentence that says why."""


def python_311() -> str:
    """A working Python 3.11 with venv: PyTorch's CPU build may exist for that version alone.

    Raises:
      Unavailable: where there is none.
    """
    test = "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))"
    for candidate in _candidates_311():
        if subprocess.run([candidate, "-c", test], capture_output=True).returncode == 0:
            return candidate
    raise Unavailable(
        "no Python 3.11 with venv was found (on the PATH, by pyenv or by uv); install one, or give"
        " an environment that has torch and transformers with --env"
    )


def _candidates_311() -> Iterator[str]:
    for folder in os.get_exec_path():
        for name in ("python3.11", "python3.11.exe"):
            if (path := shutil.which(name, path=folder)) is not None:
                yield path
    for command in (["pyenv", "prefix", "3.11"], ["uv", "python", "find", "3.11"]):
        if shutil.which(command[0]):
            found = subprocess.run(command, capture_output=True, text=True)
            if found.returncode == 0:
                path = pathlib.Path(found.stdout.strip())
                yield str(path / "bin" / "python3.11" if path.is_dir() else path)


def refuse_cuda_torch(python: str) -> None:
    """Stops before pip fetches a CUDA build: several gigabytes, and not what is wanted.

    Raises:
      Unavailable: where pip would install one, or finds none at all.
    """
    command = [python, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "--report", "-"]
    found = subprocess.run([*command, TORCH], capture_output=True, text=True)
    if found.returncode:
        raise Unavailable(f"pip finds no {TORCH} for this Python: {last_line(found.stderr)}")
    needs = json.loads(found.stdout)["install"][0]["metadata"].get("requires_dist", [])
    if any(need.startswith(("nvidia", "triton", "cuda")) for need in needs):
        raise Unavailable(
            f"pip would install a CUDA build of {TORCH}; install its CPU build in an environment"
            " and give that with --env"
        )


def make(
    folder: pathlib.Path,
    base: str,
    requirements: Sequence[Sequence[str]],
    check: Callable[[str], None] = lambda python: None,
) -> str:
    """The Python of the environment in `folder`, which is made by `base` where it is missing.

    Arguments:
      requirements: pip's arguments, one command after the other; others than those that the
        folder was made with make it anew.
      check: looks at what pip is about to install, before it does.

    Raises:
      Unavailable: where it cannot be made.
    """
    wanted, stamp = json.dumps(requirements, allow_nan=False), folder / "requirements.json"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python_of(folder))
    _run(folder, [base, "-m", "venv", "--clear", str(folder)])
    python = str(python_of(folder))
    check(python)
    for arguments in requirements:
        _run(folder, [python, "-m", "pip", "install", "--quiet", *arguments])
    stamp.write_text(wanted)
    return python


def python_of(folder: pathlib.Path) -> pathlib.Path:
    """Where the interpreter of an environment lies."""
    windows = folder / "Scripts" / "python.exe"
    return windows if windows.exists() else folder / "bin" / "python"


def variables() -> dict[str, str]:
    """What workers see: this process's variables, without those that favour one of them."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return {**kept, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def last_line(text: str) -> str:
    """What a failed program said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _run(folder: pathlib.Path, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=variables())
    if done.returncode:
        raise Unavailable(
            f"the environment in {folder} could not be made: {last_line(done.stderr)}"
        )

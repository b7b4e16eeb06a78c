"""Writes what other implementations compute, for the tests of this folder to compare ours with.

They are PyTorch's: classes and functions of transformers, and the naive forms of
flash-linear-attention. They run in a Python 3.11 environment of their own, made in
tests/oracles/.env when it is missing, on random tiny layers; weights, inputs, outputs and gradients
go to one .npz file each.

Run:   python tests/oracles/make_fixtures.py                        (the committed files, seed 0)
       python tests/oracles/make_fixtures.py --seed 1 --out /tmp/one && \\
       python -m pytest tests/oracles --oracles /tmp/one
Time:  a minute, and several for the environment the first time.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Sequence

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import environments  # noqa: E402

REQUIREMENTS = (
    # torch first and alone: another package's range would bring the newest CUDA build.
    (environments.TORCH,),
    (environments.TORCH, "transformers==5.23.0", "numpy", "einops==0.8.1"),
)
# Unpacked beside the environment's packages, not among them: importing it would need triton, and
# transformers would take its kernels if it could. Its naive forms are loaded by their paths.
UNPACKED = "fla-core==0.6.0"


def interpreter(given: pathlib.Path | None) -> str:
    """The Python that has the reference implementations.

    Raises:
      environments.Unavailable: where there is none and none can be made.
    """
    if given is None:
        base = environments.python_311()
        folder = HERE / ".env"
        return environments.make(folder, base, REQUIREMENTS, environments.refuse_cuda_torch)
    python = environments.python_of(given)
    if not python.exists():
        raise environments.Unavailable(f"--env {given} is no environment: {python} is not there")
    return str(python)


def unpack(python: str, folder: pathlib.Path) -> None:
    """Puts the files of `UNPACKED` into `folder`, where they are missing.

    Raises:
      environments.Unavailable: where pip cannot.
    """
    if (folder / "fla").exists():
        return
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, UNPACKED], capture_output=True, text=True)
    if done.returncode:
        said = environments.last_line(done.stderr)
        raise environments.Unavailable(f"{UNPACKED} could not be unpacked: {said}")


def main(arguments: Sequence[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "fixtures", metavar="DIR")
    parser.add_argument(
        "--env",
        type=pathlib.Path,
        metavar="DIR",
        help="use this virtual environment, which has torch, transformers, numpy and einops",
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="fixtures with TEXT in the name")
    options = parser.parse_args(arguments)
    naive = HERE / ".naive"
    try:
        python = interpreter(options.env)
        unpack(python, naive)
    except environments.Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    worker = [python, str(HERE / "references" / "write.py"), "--naive", str(naive)]
    return subprocess.run(
        [*worker, "--seed", str(options.seed), "--out", str(options.out), "--only", options.only],
        env=environments.variables(),
    ).returncode


if __name__ == "__main__":
    sys.exit(main())

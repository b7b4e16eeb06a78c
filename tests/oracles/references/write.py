"""Runs in the reference environment: writes every fixture, or those that --only names."""

import argparse
import pathlib
import sys

import layers  # noqa: F401  (registers its cases)
import mixtures  # noqa: F401
import naive
import ops  # noqa: F401
import recurrences  # noqa: F401
import torch
from recording import CASES, write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--naive", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    naive.FOLDER = options.naive
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name in sorted(CASES):
        if options.only in name:
            size = write(options.out, name, options.seed)
            total += size
            print(f"{name}: {size / 1000:.0f} kB", flush=True)
    print(f"{total / 1e6:.2f} MB in {options.out}, seed {options.seed}, torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The paper's matrix from the recipe `configs/laziness.py`: seven architectures, S1-S5, 100-1000N.

    python -m experiments.large_window_laziness.sweep --workdir runs/matrix --dry_run
    python -m experiments.large_window_laziness.sweep --workdir runs/matrix --print_commands
    python -m experiments.large_window_laziness.sweep --workdir runs/matrix --sizes S1 --budgets 100

Without --dry_run or --print_commands it trains the points one after another on this machine, and
the same command resumes them. Launchers run the printed commands, one per job.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hybridlm import config as configs
from hybridlm.errors import UserError
from hybridlm.settings import json_text

RECIPE = "configs/laziness.py"  # relative to the checkout, as in the printed commands
_MATRIX = configs.recipe_module(pathlib.Path(__file__).parents[2] / RECIPE)
LOCAL, SIZES, BUDGETS = _MATRIX.LOCAL, _MATRIX.SIZES, _MATRIX.BUDGETS


class Point(NamedTuple):
    """One run of the matrix."""

    architecture: str
    size: str
    budget: int
    flags: str = ""

    @property
    def spec(self) -> str:
        extra = f",{self.flags}" if self.flags else ""
        return f"{RECIPE}:{self.architecture},{self.size},{self.budget}n{extra}"

    @property
    def name(self) -> str:
        extra = f"-{self.flags}" if self.flags else ""
        return f"{self.architecture}{extra}-{self.size}-{self.budget}n"


def points(
    architectures: Sequence[str], sizes: Sequence[str], budgets: Sequence[int], flags: str = ""
) -> Iterator[Point]:
    """The points of the matrix, small sizes and budgets first."""
    for size in sizes:
        for budget in budgets:
            for architecture in architectures:
                yield Point(architecture, size, budget, flags)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; --config.a.b=value applies to every run."""
    parser = argparse.ArgumentParser(prog="sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs")
    parser.add_argument("--architectures", default=",".join(LOCAL))
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument(
        "--budgets", default=",".join(map(str, BUDGETS)), help="tokens per parameter"
    )
    parser.add_argument("--nope", action="store_true", help="no RoPE in the full layers")
    parser.add_argument("--smoke", action="store_true", help="tiny, on bundled text")
    parser.add_argument("--dry_run", action="store_true", help="print what each point would cost")
    parser.add_argument("--print_commands", action="store_true", help="print one command per point")
    arguments, rest = parser.parse_known_args(argv)
    flags = ",".join(f for f in ("nope", "smoke") if getattr(arguments, f))
    try:
        chosen = list(
            points(
                _of(arguments.architectures, LOCAL, "architectures"),
                _of(arguments.sizes, SIZES, "sizes"),
                [int(b) for b in _of(arguments.budgets, map(str, BUDGETS), "budgets")],
                flags,
            )
        )
        overrides = [_override(word) for word in rest]
        for point in chosen:
            workdir = arguments.workdir / point.name
            if arguments.print_commands:
                words = ["hybridlm train", f"--config {point.spec}", f"--workdir {workdir}", *rest]
                print(" ".join(words))
                continue
            config = configs.load(point.spec, overrides)
            if arguments.dry_run:
                from hybridlm.analysis.cost import cost

                print(json_text.dumps({"run": point.name, **cost(config)}), flush=True)
                continue
            from hybridlm.commands.full_run import full_run

            print(f"\n== {point.name}", flush=True)
            if code := full_run(config, workdir):
                return code
    except UserError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _of(text: str, known, what: str) -> list[str]:
    known = list(known)
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in known:
            raise UserError(f"--{what} {word!r} is unknown; there are: {', '.join(known)}")
    return words


def _override(word: str) -> tuple[str, str]:
    key, equals, text = word.removeprefix("--config.").partition("=")
    if not word.startswith("--config.") or not equals:
        raise UserError(f"unknown argument {word!r} (settings are --config.a.b=value)")
    return key, text


if __name__ == "__main__":
    sys.exit(main())

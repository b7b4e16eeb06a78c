"""Which layers keep attention, from a table of scores: `python -m hybridlm.distill.select --help`.

It imports neither jax nor a model. `hybridlm distill select` searches with models.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from hybridlm import errors
from hybridlm.distill.selection import ranking
from hybridlm.distill.selection.budget import Budget
from hybridlm.distill.selection.scores import read_scores
from hybridlm.distill.selection.selection import Selection, SelectorSettings, words
from hybridlm.errors import UserError
from hybridlm.settings import json_text
from hybridlm.settings.bounds import NonNegativeInt, settings
from hybridlm.settings.registry import by_name
from hybridlm.settings.text import read_texts
from hybridlm.storage.writing import write_text

PROGRAM = "hybridlm.distill.select"
#: The selectors for which scores of single layers are enough.
METHODS = by_name([ranking.HALO, ranking.RECALL, ranking.KL_ONCE, ranking.UNIFORM, ranking.RANDOM])
OTHERS = ("greedy", "kl", "gates", "exhaustive")  # they evaluate sets of layers


@settings
class TableSettings:
    """Which table, and what to make of it.

    Attributes:
      scores: CSV file with the columns layer, recall, commonsense (kl for kl_once); a row a layer.
      method: the selector.
      keep: number of layers that keep attention; a quarter of the layers by default.
      json: file for the result.
      seed: of random.
    """

    scores: pathlib.Path
    method: str = "halo"
    keep: NonNegativeInt | None = None
    json: pathlib.Path | None = None
    seed: NonNegativeInt = 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `python -m {PROGRAM} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the layers that keep attention, and the ranking; returns the exit code."""
    return errors.exit_code(PROGRAM, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    asked = read_texts(TableSettings, vars(_parser().parse_args(argv)))
    selector = _selector(asked.method)
    chosen = SelectorSettings(recall="recall", commonsense="commonsense", seed=asked.seed)
    table = read_scores(asked.scores, selector.reads(chosen))
    keep = table.depth // 4 if asked.keep is None else asked.keep
    if keep > table.depth:
        raise UserError(f"--keep is {keep}, and {asked.scores} has {table.depth} layers")
    search = table.search()
    selection = selector.select(search, Budget.of_layers(search.layers, keep), chosen)
    if asked.json is not None:
        result = {"depth": table.depth, "keep": keep, **selection.record()}
        write_text(asked.json, json_text.dumps(result, indent=2) + "\n")
    print(_text(selection, table.depth))
    return 0


def _selector(name: str) -> ranking.Selector:
    if name in OTHERS:
        raise UserError(
            f"--method {name} evaluates models with several layers replaced, of which a table of single"
            f" layers has no scores: use {', '.join(METHODS)}, or `hybridlm distill select`"
        )
    if name not in METHODS:
        raise UserError(f"--method is {name!r}: valid are {', '.join(METHODS)}")
    return METHODS[name]


def _text(selection: Selection, depth: int) -> str:
    lines = [f"attention layers kept ({len(selection.kept)} of {depth}): {words(selection.kept)}"]
    lines += [f"note: {note}" for note in selection.notes]
    if selection.scores:
        lines.append("rank  layer  kept  score")
        for rank, layer in enumerate(selection.order, start=1):
            kept = "yes" if layer in selection.kept else "no"
            lines.append(f"{rank:>4}  {layer:>5}  {kept:>4}  {selection.scores[layer]:.10g}")
    return "\n".join(lines)


def _parser() -> _Parser:
    lines = [f"  {m.name:<8} {m.help}" for m in METHODS.values()]
    parser = _Parser(
        f"python -m {PROGRAM}",
        description="Prints which layers keep attention, from scores of single layers.",
        epilog="\n".join(["methods:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    absent = argparse.SUPPRESS
    parser.add_argument(
        "scores", help="CSV file: layer, recall, commonsense (or kl); a row a layer"
    )
    parser.add_argument("--method", default=absent, metavar="NAME", help="default: halo")
    parser.add_argument(
        "--keep", default=absent, metavar="N", help="default: a quarter of the layers"
    )
    parser.add_argument("--json", default=absent, metavar="PATH", help="file for the result")
    parser.add_argument("--seed", default=absent, metavar="N", help="of random; default: 0")
    return parser


if __name__ == "__main__":
    sys.exit(main())

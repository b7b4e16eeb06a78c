"""Which layers of a model of Native Hybrid Attention should see all tokens: a search after training.

    python -m experiments.native_hybrid_attention.search MODEL --window 64 --keep 1 --out DIR

Windows have no parameters, so the search changes no weight, and they are data to one compiled program, so
that it compiles nothing. Metrics, evaluation sets and methods are those of `hybridlm distill select`
(docs/selection.md), with "keeps attention" read as "sees all tokens"; the same command goes on after a
kill. `--metric kl` and `loss` read the held-out text of a run: MODEL itself, or `--data RUN`.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from experiments.large_window_laziness import tables as tsv
from hybridlm.distill.selection.noise import difference, interval
from hybridlm.distill.selection.search import Found, LayerSearch
from hybridlm.distill.selection.selection import SelectorSettings, words
from hybridlm.distill.selection.settings import SearchSettings
from hybridlm.distill.selection.windows import windows
from hybridlm.distill.windows import nha_layers, with_windows
from hybridlm.errors import UserError, exit_code
from hybridlm.runs import OpenedModel, open_model
from hybridlm.storage.writing import make_folder, write_text

METHODS = ("kl", "greedy", "halo", "kl_once", "recall", "uniform", "random", "exhaustive")
COLUMNS = ("method", "layers", "metric", "value", "less all wide", "evaluations", "compiled")
TABLE = "search.tsv"


def search(
    model: OpenedModel,
    out: pathlib.Path,
    window: int,
    settings: SearchSettings,
    selector: SelectorSettings,
    source: OpenedModel | None = None,
) -> list[dict[str, str]]:
    """The rows of search.tsv; writes the files of `LayerSearch` into `out`.

    Args:
      window: of the layers that do not see all tokens.

    Raises:
      UserError: for a method or metric that cannot be used, or a model without such layers.
    """
    if wrong := [name for name in settings.methods if name not in METHODS]:
        raise UserError(f"--methods has {wrong[0]!r}: there are {', '.join(METHODS)}")
    layers = nha_layers(model.config)
    wide, narrow = (with_windows(model, dict.fromkeys(layers, w)) for w in (None, window))
    make_folder(out)
    searching = LayerSearch(wide, narrow, out, settings, selector, source=source, join=windows)
    ends = []
    try:
        for kept in (searching.branch.layers, ()):
            ends.append(searching.table(frozenset(kept), selector.metric))
        searching.measures(frozenset(searching.branch.layers[:1]), selector.metric)
        before = searching.compilations.count
        found = searching.run(functools.partial(print, flush=True))
        compiled = searching.compilations.count - before
        write_text(out / "search.txt", searching.text(found) + "\n")
    finally:
        searching.close()
    rows = [_row(one, selector.metric, ends[0], compiled) for one in found]
    for name, values in (("all wide", ends[0]), ("all narrow", ends[1])):
        less = "" if name == "all wide" else str(difference(values, ends[0]))
        rows.append(
            {
                "method": name,
                "layers": words(searching.branch.layers) if name == "all wide" else "none",
                "metric": selector.metric,
                "value": str(interval(values)),
                "less all wide": less,
            }
        )
    tsv.write(out / TABLE, COLUMNS, rows)
    return tsv.read(out / TABLE)


def _row(one: Found, metric: str, wide: Sequence[float], compiled: int) -> dict[str, Any]:
    return {
        "method": one.selection.method,
        "layers": words(one.selection.kept),
        "metric": metric,
        "value": str(interval(one.values)),
        "less all wide": str(difference(one.values, wide)),
        "evaluations": one.measured,
        "compiled": compiled,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="search", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path, help="a run or model folder")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the search")
    parser.add_argument("--data", type=pathlib.Path, help="a run with held-out text")
    parser.add_argument("--window", type=int, default=64, help="of the other layers, in tokens")
    parser.add_argument("--keep", type=int, default=1, help="layers that see all tokens")
    parser.add_argument("--methods", default="kl,uniform", help="separated by commas")
    parser.add_argument("--metric", default="kl", help="as in docs/selection.md")
    for name, default in (("length", None), ("samples", 2), ("sets", 4), ("batch", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(argv)
    settings = SearchSettings(
        methods=tuple(word for word in given.methods.split(",") if word),
        keep=given.keep,
        length=given.length,
        samples=given.samples,
        sets=given.sets,
        batch=given.batch,
    )
    source = None if given.data is None else open_model(given.data)
    rows = search(
        open_model(given.model),
        given.out,
        given.window,
        settings,
        SelectorSettings(given.metric, recall="needle_nll", commonsense=given.metric),
        source,
    )
    for row in rows:
        print("\t".join(row[name] for name in COLUMNS))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("search", main))

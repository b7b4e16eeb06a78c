"""Stage 2: six selectors on one table of evaluations, more random draws, and the retrieval map."""

import dataclasses
import pathlib

from experiments.distill_then_replace.usage import measured
from hybridlm.distill.selection.budget import Budget
from hybridlm.distill.selection.registry import SELECTORS
from hybridlm.distill.selection.search import LayerSearch
from hybridlm.distill.selection.selection import SelectorSettings
from hybridlm.distill.selection.settings import GateSettings, SearchSettings
from hybridlm.runs import open_model
from hybridlm.runs.json_files import write_json

DONE, TEXT = "more.json", "select.txt"
METHODS = ("greedy", "halo", "kl", "gates", "uniform", "random")
#: Four sets of one sequence of 256 tokens. Small: a greedy search of 30 layers is some 100 evaluations.
SEARCH = SearchSettings(
    methods=METHODS,
    keep=10,
    context=16_384,
    length=256,
    samples=1,
    sets=4,
    batch=4,
    curve=(10, 15, 20),
)
SELECTOR = SelectorSettings(metric="kl", recall="needle_nll", commonsense="kl", shortlist=2)
#: One training for all budgets, because the weight is given.
GATES = GateSettings(gate_steps=10, gate_lr=0.2, gate_weight=0.05)
SHOWN = ("kl", "loss", "needle_nll")
DRAWS = (1, 2)  # seeds of more random selections


def run(teacher: pathlib.Path, student: pathlib.Path, workdir: pathlib.Path) -> None:
    """Runs what is left of the search.

    Args:
      teacher: a model folder. student: the run of which only mixers were trained.
    """
    out = workdir / "selected"
    if (out / DONE).exists():
        return
    out.mkdir(exist_ok=True)
    with measured(workdir, "select"):
        models = open_model(teacher), open_model(student)
        search = LayerSearch(*models, out, SEARCH, SELECTOR, GATES)
        try:
            found = search.run(lambda line: print(line, flush=True))
            more = {
                "random": _random(search),
                "budget": [
                    {
                        "method": one.selection.method,
                        "kept": list(one.selection.kept),
                        **{
                            metric: list(search.table(frozenset(one.selection.kept), metric))
                            for metric in SHOWN
                        },
                    }
                    for one in found
                ],
                "ends": {
                    name: {m: list(search.table(frozenset(kept), m)) for m in SHOWN}
                    for name, kept in (("teacher", search.branch.layers), ("student", ()))
                },
                "evaluations": len(search.table),
            }
            (out / TEXT).write_text(search.text(found) + "\n")
        finally:
            search.close()
        write_json(out / DONE, more)


def _random(search: LayerSearch) -> list[dict]:
    """The metric of more random draws at the curve's numbers of replaced layers and at the budget."""
    layers, points = search.branch.layers, []
    for seed in DRAWS:
        settings = dataclasses.replace(SELECTOR, seed=seed)
        for replaced in sorted({*SEARCH.curve, len(layers) - SEARCH.keep}):
            budget = Budget.of_layers(layers, len(layers) - replaced)
            kept = SELECTORS["random"].select(search.search, budget, settings).kept
            values = search.table(frozenset(kept), SELECTOR.metric)
            points.append(
                {"seed": seed, "replaced": replaced, "kept": list(kept), "values": list(values)}
            )
    return points

"""The figures of README.md, from the rows of the results."""

from matplotlib.figure import Figure

from experiments.native_hybrid_attention.arms import MQAR, controls, core, slide
from experiments.native_hybrid_attention.tables import FIGURE, TITLE, Rows, ablated, by_seed, drawn
from hybridlm.analysis.figures import heat_map, sweep_summary

SHORT = {
    "NHA, last window global": "NHA\nhybrid",
    "GSA hybrid": "GSA\nhybrid",
    "GDN hybrid": "GDN\nhybrid",
    "full attention": "full",
    "window hybrid": "window\nhybrid",
    "NHA, no global window": "NHA",
    "GSA alone": "GSA",
    "GDN alone": "GDN",
}


def figures(rows: Rows) -> dict[str, Figure]:
    """By name; those whose runs are there."""
    made = {}
    for name in drawn(rows):
        kind, _, task = name.partition("_")
        if kind == "core":
            made[name] = comparison(rows, task)
        elif kind == "slide":
            made[name] = slide_figure(rows, task)
        else:
            made[name] = ablation_figure(rows)
    return made


def comparison(rows: Rows, task: str) -> Figure:
    """A point a run, their mean and its 95% interval, an arm a column."""
    table = [
        {"layers": SHORT[arm.title], TITLE[task]: row[FIGURE[task]]}
        for arm in [*core(task), *controls(task)]
        for row in by_seed(rows, arm).values()
    ]
    return sweep_summary(table, x="layers", y=TITLE[task], width=6.4)


def slide_figure(rows: Rows, task: str) -> Figure:
    """The figure against the window, a point a run."""
    table = [
        {"window in tokens": arm.windows[0], TITLE[task]: row[FIGURE[task]]}
        for arm in slide(task)
        for row in by_seed(rows, arm).values()
    ]
    return sweep_summary(table, x="window in tokens", y=TITLE[task])


def ablation_figure(rows: Rows) -> Figure:
    """Accuracy on MQAR, a cell for each window and number of slots."""
    table = [
        {"window": arm.windows[0], "slots": arm.slots, "accuracy": row[FIGURE[MQAR]]}
        for arm, own in ablated(rows).items()
        for row in own.values()
    ]
    return heat_map(table, x="window", y="slots", value="accuracy")

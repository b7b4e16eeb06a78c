"""Figures of distillation."""

from typing import Any

from matplotlib.ticker import MaxNLocator

from hybridlm.analysis.figures.style import (
    FAINT,
    WIDTH,
    Figure,
    axes_of,
    color,
    distinct,
    finite,
    legend,
    styled,
)
from hybridlm.analysis.tables import Table, records_of

MOST = 4  # steps that are drawn


@styled
def layer_errors(table: Table, *, width: float = WIDTH) -> Figure:
    """The squared error of each distilled layer: a line for the first step, the last, and some between.

    Errors that are not finite or not positive leave a gap.

    Args:
      table: columns step, layer and error, as `Run.layer_errors()`.
    """
    figure, axes = axes_of(width, 3.1)
    rows = [r for r in records_of(table) if finite(r.get("error")) and r["error"] > 0]
    steps = distinct([r["step"] for r in rows])
    if len(steps) > MOST:
        steps = [steps[round(i * (len(steps) - 1) / (MOST - 1))] for i in range(MOST)]
    layers = distinct([r["layer"] for r in rows])
    for number, step in enumerate(steps):
        found = {r["layer"]: r["error"] for r in rows if r["step"] == step}
        values = [found.get(layer, float("nan")) for layer in layers]
        last = number == len(steps) - 1
        alpha = 1 if last else 0.4 + 0.6 * (number + 1) / len(steps)
        style: dict[str, Any] = dict(color=color(0) if last else FAINT, alpha=alpha)
        axes.plot(layers, values, marker="o", label=f"step {step:,}", **style)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set(xlabel="layer", ylabel="squared error")
    legend(figure, axes)
    return figure


__all__ = ["layer_errors"]

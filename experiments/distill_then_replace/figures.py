"""The figures of README.md, from the committed results."""

from typing import Any

from matplotlib.figure import Figure

from experiments.distill_then_replace.arms import MIXERS, STARTS
from experiments.distill_then_replace.tables import alone, curve_points, final_mse, random_means
from hybridlm.analysis import selection
from hybridlm.analysis.figures import FAINT, INK, PALETTE, plain_axes
from hybridlm.distill.selection.noise import interval

Results = dict[str, Any]
COLORS = dict(zip(STARTS, PALETTE))


def figures(results: Results) -> dict[str, Figure]:
    """By name; those whose results are there."""
    found = {}
    if _by_mixer(results):
        found |= {"errors": errors_figure(results), "by_layer": by_layer_figure(results)}
    if "selections" in results and "more" in results:
        found["quality"] = quality_figure(results)
        found["alone"] = alone_figure(results)
        found["layers"] = selection.layers_figure(results["selections"])
    return found


def errors_figure(results: Results) -> Figure:
    """Error over the mean square of the teacher's output against the step, a panel a mixer."""
    figure, panels = _panels(results)
    for axes, mixer, arms in panels:
        for arm in arms:
            style = dict(color=COLORS[arm["start"]], label=arm["start"], linewidth=1.6)
            axes.plot(arm["step"], arm["relative_error"], **style)
        axes.axhline(1, color=FAINT, linewidth=1, linestyle=":")
        axes.set_title(mixer, fontsize=10, color=INK)
        axes.set_xlabel("step", fontsize=9)
        _plain(axes)
    figure.axes[0].set_ylabel("relative squared error", fontsize=9)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def by_layer_figure(results: Results) -> Figure:
    """Squared error of each layer after the last steps, a panel a mixer."""
    figure, panels = _panels(results)
    for axes, mixer, arms in panels:
        for arm in arms:
            style = dict(color=COLORS[arm["start"]], label=arm["start"], linewidth=1.4)
            axes.plot(arm["layers"], final_mse(arm), marker="o", markersize=2.5, **style)
        axes.set_yscale("log")
        axes.set_title(mixer, fontsize=10, color=INK)
        axes.set_xlabel("layer", fontsize=9)
        _plain(axes)
    figure.axes[0].set_ylabel("squared error, last 4 steps", fontsize=9)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def quality_figure(results: Results) -> Figure:
    """KL to the teacher against the number of replaced layers; the band is the random draws."""
    figure, axes = plain_axes(7.2, 3.8)
    points, draws = curve_points(results), random_means(results)
    counts = sorted(draws)
    low, high = ([pick(draws[n]) for n in counts] for pick in (min, max))
    axes.fill_between(counts, low, high, color=FAINT, alpha=0.5, linewidth=0, label="random draws")
    lines = {name: line for name, line in points.items() if name != "random"}
    for i, (method, line) in enumerate(lines.items()):
        counts = sorted(n for n in line if n)
        found = [interval(line[n]) for n in counts]
        axes.errorbar(
            [
                n + 0.12 * (i - len(lines) / 2) for n in counts
            ],  # so that bars do not hide each other
            [one.mean for one in found],
            [one.half or 0 for one in found],
            label=method,
            color=PALETTE[i % len(PALETTE)],
            marker="o",
            markersize=3.5,
            linewidth=1.5,
            capsize=2,
        )
    axes.set_yscale("log")
    total = len(results["selections"]["layers"])
    axes.set(
        xlabel=f"layers of {total} replaced",
        ylabel="KL to the teacher, nats a token",
        title="Quality by replaced layers, 95% intervals over 4 evaluation sets",
    )
    axes.legend(frameon=False, fontsize=8)
    return figure


def alone_figure(results: Results) -> Figure:
    """Models with one layer replaced: their KL, and the nats of a needle; retrieval heads are marked."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    heads = {int(head.partition(".")[0]) for head in results["selections"]["retrieval"]["top"]}
    titles = {"kl": "KL to the teacher", "needle_nll": "needle, nats a token"}
    for axes, (metric, title) in zip(figure.subplots(2, 1, sharex=True), titles.items()):
        found = {layer: interval(x) for layer, x in alone(results, metric).items()}
        axes.bar(
            list(found),
            [one.mean for one in found.values()],
            yerr=[one.half or 0 for one in found.values()],
            color=[PALETTE[1] if layer in heads else PALETTE[0] for layer in found],
            ecolor=INK,
            error_kw=dict(linewidth=0.8),
        )
        axes.set_ylim(bottom=0)
        axes.set_ylabel(title, fontsize=9)
        _plain(axes)
    figure.axes[1].set_xlabel(
        "layer that is replaced alone (orange: the teacher's top heads)", fontsize=9
    )
    return figure


def _by_mixer(results: Results) -> dict[str, list[Results]]:
    """The arms of each mixer that has some."""
    arms = [arm for arm in results.get("blockwise", ()) if arm["name"] != "student"]
    found = {mixer: [arm for arm in arms if arm["mixer"] == mixer] for mixer in MIXERS}
    return {mixer: own for mixer, own in found.items() if own}


def _panels(results: Results) -> tuple[Figure, list[tuple[Any, str, list[Results]]]]:
    """A figure with a panel a mixer: its axes, its name and its arms."""
    found = _by_mixer(results)
    figure = Figure(figsize=(1.2 + 2.8 * len(found), 3.2), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    return figure, list(zip(axes, found, found.values()))


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)

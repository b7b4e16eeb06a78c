"""The section of a report on what a run learned from its teacher: errors by layer, or the divergence."""

from hybridlm.analysis import figures
from hybridlm.analysis.figures.style import finite
from hybridlm.analysis.report.parts import Parts, cards, grid, section
from hybridlm.analysis.rows import Row
from hybridlm.analysis.run import Run

TITLES = {
    "relative_error": ("Relative squared error, mean over layers", "relative squared error"),
    "kl": ("Divergence from the teacher", "nats a token of KL to the teacher"),
}


def distillation(parts: Parts, run: Run, code: str) -> str:
    """Figures and a table of a run with a teacher; nothing for another run.

    Args:
      code: that opens the run.
    """
    train, errors = run.rows("train"), run.layer_error_rows()
    found, shown = [], []
    for key, (title, meaning) in TITLES.items():
        points = [{"step": r["step"], key: r[key]} for r in train if key in r]
        if points:
            if finite(points[-1][key]):
                found.append((f"{points[-1][key]:.3g}", meaning))
            made = f'figures.progress_curve({code}.metrics(), "{key}")'
            shown.append(parts.figure(title, figures.progress_curve(points, key), made, points))
    if not shown:
        return ""
    table = ""
    if errors:
        made = f"figures.layer_errors({code}.layer_errors())"
        drawn = figures.layer_errors(errors)
        shown.append(parts.figure("Squared error of each layer", drawn, made, errors))
        rows = _by_layer(run, errors)
        fell = sum(finite(r["share"]) and r["share"] < 1 for r in rows)
        found.append((f"{fell} of {len(rows)}", "layers whose squared error fell"))
        first, last = train[0]["step"], train[-1]["step"]
        columns = {"layer": "layer", "mixer": "mixer", "first": f"step {first:,}"}
        columns |= {"last": f"step {last:,}", "share": "last over first"}
        table = parts.table("Squared error by layer", rows, columns, download=errors)
    if finite(train[-1].get("of_teacher_forward")):
        share = train[-1]["of_teacher_forward"]
        found.append((f"{share:.0%}", "of the tokens a second of the teacher's forward pass"))
    return section("Distillation", cards(found), _skipped(train), grid(*shown), table)


def _by_layer(run: Run, errors: list[Row]) -> list[Row]:
    """Each layer's error at the first and the last recorded step, and their quotient."""
    mixers = [name for name, _ in run.config.model.layer_mixers()]
    by_layer: dict[int, list[float]] = {}
    for row in errors:
        by_layer.setdefault(row["layer"], []).append(row["error"])
    return [
        {
            "layer": layer,
            "mixer": mixers[layer],
            "first": values[0],
            "last": values[-1],
            "share": values[-1] / values[0] if values[0] else None,
        }
        for layer, values in sorted(by_layer.items())
    ]


def _skipped(train: list[Row]) -> str:
    counts = [r["layers_skipped"] for r in train if r.get("layers_skipped")]
    if not counts:
        return ""
    return (
        f"<p class=warn>In {len(counts):,} of {len(train):,} recorded steps up to {max(counts):g} layers"
        " were not finite, and were not updated.</p>"
    )

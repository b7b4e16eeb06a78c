"""The sections of a report that compares runs: of a sweep, or of an experiment."""

from collections import Counter
from typing import Any

from hybridlm.analysis import figures
from hybridlm.analysis.arms import is_seed
from hybridlm.analysis.figures.style import finite
from hybridlm.analysis.measurements import measured_at, newest
from hybridlm.analysis.report.parts import Parts, cards, count_text, grid, section
from hybridlm.analysis.rows import Row
from hybridlm.analysis.runs import Runs
from hybridlm.sweep.names import short_key


def comparison_sections(runs: Runs, asked: str) -> tuple[Parts, str]:
    """The report of several runs: the parts' data, and HTML.

    Args:
      asked: the path that leads to the runs, for the code of the figures.
    """
    parts, code = Parts(), f"Runs({asked!r})"
    summary = runs.summary_rows()
    sections = [
        _cards(summary),
        _summary(parts, runs, summary),
        _differences(parts, runs),
        _curves(parts, runs, code),
        _settings(parts, runs, summary, code),
        _evaluations(parts, runs, code),
        _heads(parts, runs, code),
    ]
    return parts, "\n".join(filter(None, sections))


def _cards(summary: list[Row]) -> str:
    finished = sum(r["steps"] is not None and r["step"] >= r["steps"] for r in summary)
    best = min((r for r in summary if finite(r["heldout_loss"])), key=_heldout, default=None)
    found = [(str(len(summary)), "runs"), (str(finished), "of them finished")]
    tokens = count_text(sum(r["tokens"] or 0 for r in summary))
    found.append((tokens, "training tokens of all, padding included"))
    if all(finite(r["flops"]) for r in summary):
        flops = count_text(sum(r["flops"] for r in summary))
        found.append((flops, "training FLOPs of all, padding included"))
    if best:
        found.append((f"{best['heldout_loss']:.4f}", f"nats held out, the least: {best['run']}"))
    return cards(found)


def _heldout(row: Row) -> float:
    return row["heldout_loss"]


def _summary(parts: Parts, runs: Runs, summary: list[Row]) -> str:
    hidden = {"steps", "parameters", "training_bits_per_byte", "arm"}
    if len({r["parameters"] for r in summary}) > 1:
        hidden.discard("parameters")
    varied = runs.varied()
    kept = [*varied[:6]]
    figures_of = [k for r in summary[:1] for k in r if k not in {"run", *varied, *hidden}]
    more = [k for r in summary for k in r if k not in {"run", *varied, *hidden, *figures_of}]
    columns = {"run": "run"} | {k: short_key(k) for k in kept}
    columns |= {k: _heading(k) for k in dict.fromkeys([*figures_of, *more])}
    shown = {"tokens": _count, "flops": _count}
    best = min((r["heldout_loss"] for r in summary if finite(r["heldout_loss"])), default=None)

    def marked(row: Row, key: str) -> bool:
        return key == "heldout_loss" and row[key] == best

    caption = "A run a row; the least held-out loss is marked"
    table = parts.table(caption, summary, columns, marked=marked, shown=shown)
    return section("Runs", table)


def _heading(key: str) -> str:
    return key.replace("heldout", "held-out").replace("_", " ").replace("flops", "FLOPs")


def _count(value: Any) -> str:
    return "" if value is None else count_text(value)


def _differences(parts: Parts, runs: Runs) -> str:
    rows = runs.difference_rows()
    if not rows:
        return section("Settings", "<p>The configs of all runs are the same.</p>")
    usual = {r["key"]: Counter(str(r[n]) for n in runs.names).most_common(1)[0][0] for r in rows}

    def marked(row: Row, key: str) -> bool:
        return key != "key" and not is_seed(row["key"]) and str(row[key]) != usual[row["key"]]

    columns = {"key": "setting"} | {name: name for name in runs.names}
    shown = {name: _setting for name in runs.names}
    table = parts.table(
        "What differs; marked where it is not the most frequent value",
        rows,
        columns,
        marked=marked,
        shown=shown,
    )
    return section("Settings", table)


def _setting(value: Any) -> str:
    """As in a config: 65536 and not 65,536."""
    return str(value)


def _curves(parts: Parts, runs: Runs, code: str) -> str:
    kind = "eval" if any(run.eval_records for run in runs) else "train"
    rows = runs.joined(lambda run: run.rows(kind))
    if not rows:
        return ""
    by, note = _lines(runs)
    what = "Held-out loss" if kind == "eval" else "Training loss"
    shown = []
    for x, title in (("step", "step"), ("tokens", "tokens"), ("flops", "FLOPs")):
        if any(finite(r.get(x)) for r in rows):
            drawn = figures.learning_curves(rows, x=x, by=by)
            made = f'figures.learning_curves({code}.metrics("{kind}"), x="{x}", by="{by}")'
            shown.append(parts.figure(f"{what} by {title}", drawn, made, rows, note))
    places = runs.joined(lambda run: run.position_rows())
    last: dict[str, int] = {}
    for row in places:
        last[row["run"]] = max(row["step"], last.get(row["run"], 0))
    ends = [row for row in places if row["step"] == last[row["run"]]]
    if ends:
        drawn = figures.loss_by_position(ends, by=by)
        made = (
            f"table = {code}.by_position()\n"
            'last = table[table.step == table.groupby("run").step.transform("max")]\n'
            f'figures.loss_by_position(last, by="{by}")'
        )
        shown.append(parts.figure("Held-out loss by position at the end", drawn, made, ends))
    return section("Learning curves", grid(*shown))


def _lines(runs: Runs) -> tuple[str, str]:
    """The column of the lines in a figure, and what its bands are."""
    count = len(set(runs.arms.values()))
    if count == len(runs):
        return "run", ""
    return "arm", "Lines are means; bands are from the smallest to the largest of an arm's runs."


def _settings(parts: Parts, runs: Runs, summary: list[Row], code: str) -> str:
    """A figure against each setting of a sweep of one or two."""
    varied = [key for key in runs.varied() if not is_seed(key)]
    if not 1 <= len(varied) <= 2:
        return ""
    keys = dict.fromkeys(k for row in summary for k in row)  # a run may lack evaluations
    measured = [k for k in keys if k.endswith("_loss") or "_accuracy_" in k]
    shown = []
    for y in measured:
        if y == "training_loss" or not any(finite(r.get(y)) for r in summary):
            continue
        x, *others = varied
        if others and len({r[x] for r in summary}) < len({r[others[0]] for r in summary}):
            x, others = others[0], [x]
        by = others[0] if others else None
        rest = "" if by is None else f", by={by!r}"
        drawn = figures.sweep_summary(summary, x=x, y=y, by=by)
        made = f"figures.sweep_summary({code}.summary(), x={x!r}, y={y!r}{rest})"
        title = f"{_heading(y).capitalize()} against {short_key(x)}"
        note = "Bars are 95% intervals of the mean over runs (Student's t)."
        if not y.endswith("_loss"):
            note += " Of each run, raw weights of the newest checkpoint that was evaluated."
        shown.append(parts.figure(title, drawn, made, summary, note))
    return section("Against settings", grid(*shown))


def _evaluations(parts: Parts, runs: Runs, code: str) -> str:
    rows = runs.joined(lambda run: run.evaluation_rows())
    if not rows:
        return ""
    shown = []
    accuracies = [r for r in rows if r["figure"] == "accuracy"]
    for task, weights in dict.fromkeys((r["task"], r["weights"]) for r in accuracies):
        found = newest([r for r in accuracies if r["task"] == task], weights)
        drawn = figures.heat_map(found, x="length", y="run", value="accuracy")
        made = (
            f"table = {code}.evaluations()\n"
            f'table = newest(table[table.task == "{task}"], {weights!r})\n'
            'figures.heat_map(table, x="length", y="run", value="accuracy")'
        )
        title = f"{task}: accuracy by run and length, {measured_at(found)}"
        shown.append(parts.figure(title, drawn, made, found))
    columns = {
        k: k for k in ("run", "task", "length", "step", "weights", "figure", "value", "samples")
    }
    return section("Evaluations", grid(*shown), parts.table("Results of all runs", rows, columns))


def _heads(parts: Parts, runs: Runs, code: str) -> str:
    """The best retrieval head of each run over training."""
    rows = runs.joined(lambda run: run.probe_rows("retrieval_heads"))
    best: dict[tuple[str, int], Row] = {}
    for row in rows:
        key = row["run"], row["step"]
        if finite(row["mass"]) and (key not in best or row["mass"] > best[key]["mass"]):
            best[key] = row
    found = list(best.values())
    if not found:
        return ""
    by, note = _lines(runs)
    drawn = figures.learning_curves(found, x="step", y="mass", by=by)
    made = (
        f'table = {code}.probes("retrieval_heads")\n'
        'best = table.loc[table.groupby(["run", "step"]).mass.idxmax()]\n'
        f'figures.learning_curves(best, x="step", y="mass", by="{by}")'
    )
    title = "Best retrieval head: attention on the needle"
    return section("Probes", grid(parts.figure(title, drawn, made, found, note)))

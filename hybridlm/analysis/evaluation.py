"""`hybridlm eval`: runs the suite and writes eval.json, a table and figures."""

import json
import pathlib
from typing import Any

from hybridlm.analysis.figures import heat_map_figure, to_svg
from hybridlm.errors import UserError
from hybridlm.evals.scoring import accuracy_table
from hybridlm.evals.suite import Settings, run_suite
from hybridlm.runs import open_model
from hybridlm.runs.json_files import write_json

Record = dict[str, Any]


def evaluate_run(
    workdir: pathlib.Path, settings: Settings, out: pathlib.Path, step: int | None = None
) -> str:
    """Evaluates a run's checkpoint; returns the table that was also written.

    Files in `out`: `eval.json` (step, settings, records), `eval.txt` (the table), `needle.svg`
    (accuracy by depth and length) and `tasks.svg` (by task and length), where there is such a task.

    Raises:
      UserError: for settings that mean nothing, a run without a checkpoint, a folder that cannot be
        written.
    """
    settings.check()
    run = open_model(workdir, step)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
    records = run_suite(run, workdir, settings, lambda line: print(line, flush=True))
    shown = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(settings).items()}
    write_json(out / "eval.json", {"step": run.step, "settings": shown, "records": records})
    text = table(records)
    (out / "eval.txt").write_text(text + "\n", encoding="utf-8")
    for name, figure in figures(records).items():
        (out / f"{name}.svg").write_text(to_svg(figure), encoding="utf-8")
    return text


def table(records: list[Record]) -> str:
    """All records as text: accuracies in per cent, losses in bits per byte, LongPPL."""
    parts = []
    accuracies = _rows(records, "accuracy")
    if accuracies:
        parts.append(accuracy_table("accuracy, %", accuracies))
    for task, key, title in (
        ("perplexity", "bits_per_byte", "bits per byte"),
        ("longppl", "longppl", "LongPPL"),
    ):
        chosen = [r for r in records if r["task"] == task]
        if chosen:
            cells = ("none" if r[key] is None else f"{r[key]:.4f}" for r in chosen)
            lines = [f"{title:<14}" + "".join(f"{r['length']:>12,}" for r in chosen)]
            parts.append("\n".join([*lines, " " * 14 + "".join(f"{c:>12}" for c in cells)]))
    return "\n\n".join(parts)


def figures(records: list[Record]) -> dict[str, Any]:
    """Heat maps by name: "needle" by depth and length, "tasks" by task and length."""
    made = {}
    needles = [r for r in records if r["task"] == "needle"]
    if needles:
        rows = {
            f"{cell['depth']:g}%": {
                r["length"]: c["accuracy"]
                for r in needles
                for c in r["by_depth"]
                if c["depth"] == cell["depth"]
            }
            for cell in needles[0]["by_depth"]
        }
        made["needle"] = heat_map_figure(rows, "Needle in a haystack", "depth of the needle")
    accuracies = _rows(records, "accuracy")
    if accuracies:
        made["tasks"] = heat_map_figure(accuracies, "Accuracy by task and length", "")
    return made


def read(out: pathlib.Path) -> Record:
    """What `evaluate_run` wrote into a folder."""
    return json.loads((out / "eval.json").read_text(encoding="utf-8"))


def _rows(records: list[Record], key: str) -> dict[str, dict[int, float]]:
    rows: dict[str, dict[int, float]] = {}
    for record in records:
        if key in record:
            rows.setdefault(record["task"], {})[record["length"]] = record[key]
    return rows

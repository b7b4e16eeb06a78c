"""Runs the library's probes on finished runs: layer probing, copies, slots' share, Q/K distance.

    python -m experiments.large_window_laziness.probed --workdir runs/laziness
    python -m experiments.large_window_laziness.probed --figure

The first writes `results/main/probes.tsv` and the figure `probes.svg`, the second draws the figure
again. The runs keep their parameters in `state.npz`. Q/K distances were measured in training and
stand in `curve.jsonl`.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.large_window_laziness import measure, stream, tables
from experiments.large_window_laziness.arms import ARMS, SCALES, Arm
from experiments.large_window_laziness.claims import RESULTS
from experiments.large_window_laziness.runs import final
from hybridlm.analysis.figures import probe_panels, save
from hybridlm.errors import UserError, exit_code
from hybridlm.probes import Prompts, layer_probing, mixer_names, retrieval_heads, slot_share
from hybridlm.settings import json_text

RUNS = "w4-rope,w32-rope,nha16x16-rope"
CLASSES, PROMPTS = 8, 400  # symbols that a layer has to tell apart; sequences
COLUMNS = (
    *("run", "lr", "probe", "step", "layer", "mixer", "head"),
    *("accuracy", "chance", "mass", "copy", "relative", "share"),
)


def classified(arm: Arm, count: int = PROMPTS) -> tuple[Prompts, np.ndarray]:
    """Sequences that end with the query of a far copy, and the class of each one's answer.

    In every sequence two symbols are exchanged, so that the answer is one of `CLASSES` symbols. This
    does not change the task, whose symbols are all alike. The answer stands in the sequence, and
    the other classes may or may not, so that a layer that merely knows which symbols have occurred
    does better than `chance`.
    """
    made = measure.needles(arm.scale.task, count, arm.final)
    tokens_NT, first_N = made.tokens_NT.copy(), made.rows_NQ[:, 0] + 1
    answer_N = tokens_NT[np.arange(count), first_N]
    labels_N = np.random.default_rng(0).integers(0, CLASSES, count)
    for row_T, answer, label in zip(tokens_NT, answer_N, labels_N):
        other = arm.scale.task.local + label  # the first symbols of chunks
        here, there = row_T == answer, row_T == other
        row_T[here], row_T[there] = other, answer
    rest = (made.segment_ids_NT, made.positions_NT, made.rows_NQ, made.needle_NT)
    return Prompts(tokens_NT, *rest, arm.final), labels_N


def probed(arm: Arm, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The rows of probes.tsv of one complete run."""
    model, params = final(arm, folder)
    records = [json_text.loads(line) for line in (folder / "curve.jsonl").open()]
    batch = measure.at_once(arm.scale.task)
    prompts, labels_N = classified(arm)
    needles = measure.needles(arm.scale.task, measure.PROMPTS, arm.final)
    found = [
        layer_probing(model, params, prompts, labels_N, batch=batch),
        retrieval_heads(model, params, needles, batch=batch),
        slot_share(model, params, _text(arm), batch=batch),
    ]
    last = records[-1]["step"]
    for entries in found:
        for row in entries.records(last):
            yield {"run": arm.name, "lr": arm.lr, "probe": row["kind"], **row}
    names = mixer_names(model)
    for record in records:
        for layer, head, distance in record["qk"]:
            yield {
                "run": arm.name,
                "lr": arm.lr,
                "probe": "qk_distance",
                "step": record["step"],
                "layer": layer,
                "mixer": names[layer],
                "head": head,
                "relative": distance,
            }


def _text(arm: Arm) -> Prompts:
    """Held-out sequences without a question."""
    tokens_NT = stream.sequences(arm.scale.task, measure.HELD_OUT, 0, measure.EACH).tokens_NT
    ones = np.ones_like(tokens_NT)
    positions = np.cumsum(ones, axis=1, dtype=np.int32) - 1
    rows = np.full((len(tokens_NT), 1), -1, np.int32)
    return Prompts(tokens_NT, ones, positions, rows, np.zeros_like(ones, bool), arm.final)


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of probes.tsv, with numbers as numbers and without empty columns."""
    words = ("run", "probe", "mixer")
    whole = ("step", "layer", "head")
    return [
        {n: x if n in words else int(x) if n in whole else float(x) for n, x in row.items() if x}
        for row in tables.read(path)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="probed", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of all runs")
    parser.add_argument("--scale", choices=tuple(SCALES), default="main")
    parser.add_argument("--arms", default=RUNS, help="names, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--figure", action="store_true", help="draw the table that is there")
    arguments = parser.parse_args(argv)
    folder = arguments.out / arguments.scale
    if not arguments.figure:
        if arguments.workdir is None:
            raise UserError("probed needs the --workdir of the runs, or --figure")
        known = ARMS[arguments.scale]
        names = arguments.arms.split(",")
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"there is no arm {unknown[0]!r}")
        places = [arguments.workdir / arguments.scale / n / str(arguments.seed) for n in names]
        rows = [row for name, place in zip(names, places) for row in probed(known[name], place)]
        kept = [{n: _short(row[n]) for n in COLUMNS if n in row} for row in rows]
        tables.write(folder / "probes.tsv", COLUMNS, kept)
    save(probe_panels(rows_of(folder / "probes.tsv")), folder / "probes.svg")
    print(f"written to {folder}/probes.tsv and probes.svg")
    return 0


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(exit_code("probed", main))

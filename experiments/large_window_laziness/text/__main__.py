"""The matrix of windows, positions and paired seeds on real text, for one accelerator.

    python -m experiments.large_window_laziness.text --workdir runs/laziness-text --seconds 450
    python -m experiments.large_window_laziness.text --workdir runs/laziness-text --table --publish
    python -m experiments.large_window_laziness.text --visit results.jsonl --publish
    python -m experiments.large_window_laziness.text --workdir runs/text-rehearsal \\
        --scale rehearsal --steps 40 --seeds 1

The first run makes the corpus from the Python files of this machine. With --seconds the speed is
measured for 20 seconds, and the steps of every run are scaled to the budget, once for a folder.
The same command resumes what was stopped. All arms run with one seed before the next one. --publish
writes the tables into `results/text` and fills the blocks of the README and of TABLES.md.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from experiments.large_window_laziness.text.arms import SCALES, SEEDS, TextScale, arms, chosen
from hybridlm.errors import UserError, exit_code
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 2, with one sentence on stderr, for an unknown arm."""
    parser = argparse.ArgumentParser(prog="text", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of all runs")
    parser.add_argument("--scale", choices=tuple(SCALES), default="text", help="of the models")
    parser.add_argument("--arms", default="", help="names, separated by commas; all by default")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="runs of each arm")
    parser.add_argument("--steps", type=int, help="of each run; those of the scale by default")
    parser.add_argument("--seconds", type=float, help="budget that the steps are scaled to")
    parser.add_argument("--dry_run", action="store_true", help="print what each run would cost")
    parser.add_argument("--table", action="store_true", help="write the tables, train nothing")
    parser.add_argument("--visit", type=pathlib.Path, help="records of a GPU visit, for the tables")
    parser.add_argument("--publish", action="store_true", help="fill the README, too")
    arguments = parser.parse_args(argv)
    scale, workdir = SCALES[arguments.scale], arguments.workdir
    if workdir is None and arguments.visit is None:
        raise UserError("text needs the --workdir of the runs, or the records of a --visit")
    if arguments.publish and arguments.scale != "text":
        raise UserError(f"the README has no table of the scale {arguments.scale!r}")
    names = [word for word in arguments.arms.split(",") if word]
    known = [arm.name for arm in arms(scale)]
    if unknown := [name for name in names if name not in known]:
        print(f"text: there is no {unknown[0]!r}; arms: {', '.join(known)}", file=sys.stderr)
        return 2
    units = [(arm, seed) for seed in range(arguments.seeds) for arm in chosen(scale, names)]
    if arguments.dry_run:
        return _dry_run(units, arguments.steps or scale.steps)
    from experiments.large_window_laziness.text import corpus, runs, table
    from experiments.large_window_laziness.text.measure import HeldOut

    if arguments.visit is not None:
        found = table.collect_visit(arguments.visit, scale)
        if not found[1]:
            raise UserError(f"{arguments.visit} has no complete run on real text")
        folder = arguments.visit.parent if workdir is None else workdir
        return _write(folder, scale, found, arguments.publish)
    if not arguments.table:
        held_out = HeldOut.of(corpus.prepare(workdir / "corpus", scale), scale)
        steps = arguments.steps or steps_of(
            workdir, scale, held_out, arguments.seconds, len(arms(scale)) * arguments.seeds
        )
        for arm, seed in units:
            runs.run(arm, seed, workdir / arm.name / str(seed), held_out, steps)
    return _write(workdir, scale, table.collect(workdir, scale), arguments.publish)


def _write(folder: pathlib.Path, scale: TextScale, found, publish: bool) -> int:
    """Writes the tables into a folder and, to publish them, into the results and the pages."""
    from experiments.large_window_laziness import claims, results
    from experiments.large_window_laziness.text import table

    count = table.write_tables(folder, scale, found)
    print(f"{count} runs are complete; tables: {folder}/text_curves.tsv and text_runs.tsv")
    if publish:
        table.write_tables(claims.RESULTS / "text", scale, found)
        for path in results.PAGES:
            write_text(path, results.filled(path.read_text(encoding="utf-8"), "main"))
    return 0


def steps_of(
    workdir: pathlib.Path, scale: TextScale, held_out, seconds: float | None, count: int
) -> int:
    """The steps of each of so many runs; measured once and kept in `plan.json`.

    Raises:
      UserError: if the plan was made for another budget or number of runs.
    """
    from experiments.large_window_laziness.text.runs import measured_steps

    path = workdir / "plan.json"
    if seconds is None:
        return scale.steps
    if not path.exists():
        plan = measured_steps(held_out, arms(scale)[0], count, seconds)
        make_folder(workdir)
        write_text(path, json_text.dumps(plan | {"seconds": seconds, "runs": count}))
        print(f"{plan['tokens_a_second']:,} tokens/s: {plan['steps']:,} steps a run", flush=True)
    plan = json_text.loads(path.read_text())
    planned = plan.get("runs", count)  # older plans do not say
    if (plan["seconds"], planned) != (seconds, count):
        raise UserError(
            f"{workdir} holds a plan of {planned} runs in {plan['seconds']:g} s, not {count} in {seconds:g} s:"
            " give the same --seconds and --seeds, remove that folder, or give another --workdir"
        )
    return plan["steps"]


def _dry_run(units, steps: int) -> int:
    """A line per run: its parameters and tokens, and its model FLOPs in training."""
    from hybridlm.models.accounting import train_flops_per_token
    from hybridlm.models.params import Model

    for arm, seed in units:
        model, scale = Model.of(arm.model()), arm.scale
        tokens = steps * scale.batch * scale.length
        facts = {
            "run": f"{arm.name}/{seed}",
            "parameters": model.count(),
            "without_embedding": model.count() - scale.vocab * scale.width,
            "steps": steps,
            "tokens": tokens,
            "train_flops": train_flops_per_token(model, scale.length) * tokens,
        }
        print(json_text.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("text", main))

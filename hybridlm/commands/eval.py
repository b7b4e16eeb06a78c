"""`hybridlm eval`."""

import pathlib

from hybridlm.commands import shared
from hybridlm.commands.command import Command
from hybridlm.commands.shared import CheckpointSettings, CompilationSettings, OutputSettings
from hybridlm.evals.settings import EvalSettings


def _run(
    where: CheckpointSettings,
    settings: EvalSettings,
    output: OutputSettings,
    compilation: CompilationSettings,
) -> int:
    """Writes `eval.json` (step, weights, settings, records), `eval.txt` (the table) and figures.

    The figures are `needle.svg` (accuracy by depth and length) and `tasks.svg` (accuracy by task
    and length), if such tasks were run.
    """
    from hybridlm.analysis import evaluation
    from hybridlm.analysis.figures import to_svg
    from hybridlm.evals.registry import chosen_tasks
    from hybridlm.evals.suite import run_suite
    from hybridlm.progress import doing
    from hybridlm.runs import open_model
    from hybridlm.runs.json_files import write_json
    from hybridlm.storage.writing import write_text

    chosen_tasks(settings)  # a wrong name fails before the model is opened
    compilation.start()
    opened = open_model(where.workdir, where.step, where.weights)
    out = shared.make_folder(output.out)
    records = run_suite(opened, settings, lambda line: print(line, flush=True))
    shown = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(settings).items()}
    facts = {"step": opened.step, "weights": opened.weights}
    write_json(out / evaluation.RECORDS, {**facts, "settings": shown, "records": records})
    text = evaluation.table(records)
    write_text(out / "eval.txt", text + "\n")
    with doing("drawing the figures"):
        for name, figure in evaluation.figures(records).items():
            write_text(out / f"{name}.svg", to_svg(figure))
    print(f"\n{text}\n\nwritten to {out}")
    return 0


def _tasks() -> str:
    from hybridlm.evals.registry import TASKS

    return shared.listed("tasks", TASKS.values())


EVAL = Command(
    "eval",
    "evaluate a trained model on long-context tasks",
    lambda: (CheckpointSettings, EvalSettings, OutputSettings, CompilationSettings),
    _run,
    notes=_tasks,
)

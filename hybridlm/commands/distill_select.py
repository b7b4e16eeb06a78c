"""`hybridlm distill select`: which layers of a converted model keep attention."""

import pathlib

from hybridlm.commands import shared
from hybridlm.commands.command import Command
from hybridlm.commands.shared import CompilationSettings, OutputSettings
from hybridlm.distill.selection.selection import SelectorSettings
from hybridlm.distill.selection.settings import GateSettings, SearchSettings
from hybridlm.errors import UserError
from hybridlm.settings.bounds import settings


@settings
class SelectedModels:
    """Which models.

    Attributes:
      teacher: a run, model folder or checkpoint of transformers.
      student: the same model with other mixers, of which only those were trained: a run or model
        folder.
    """

    teacher: pathlib.Path
    student: pathlib.Path


def _run(
    models: SelectedModels,
    search: SearchSettings,
    selector: SelectorSettings,
    gates: GateSettings,
    output: OutputSettings,
    compilation: CompilationSettings,
) -> int:
    """Writes a model folder for each method, `selections.json`, `select.txt` and two figures.

    Everything that is measured goes to `evaluations.jsonl` at once; the same command again goes on from
    there.
    """
    from hybridlm.analysis import selection
    from hybridlm.analysis.figures import to_svg
    from hybridlm.distill.selection.search import RESULT, LayerSearch, check_settings
    from hybridlm.progress import doing
    from hybridlm.runs import open_model
    from hybridlm.runs.json_files import read_json
    from hybridlm.storage import is_remote
    from hybridlm.storage.writing import write_text

    check_settings(search, selector)  # a wrong name fails before a model is opened
    if is_remote(output.out):
        raise UserError(
            f"--out {output.out} is in a bucket: the table needs a folder of this machine"
        )
    compilation.start()
    teacher, student = open_model(models.teacher), open_model(models.student)
    source = None if search.data is None else open_model(search.data)
    out = shared.make_folder(output.out)
    searching = LayerSearch(teacher, student, out, search, selector, gates, source=source)
    try:
        found = searching.run(lambda line: print(line, flush=True))
        text = searching.text(found)
    finally:
        searching.close()
    write_text(out / "select.txt", text + "\n")
    with doing("drawing the figures"):
        for name, figure in selection.figures(read_json(out / RESULT)).items():
            write_text(out / f"{name}.svg", to_svg(figure))
    print(f"\n{text}\n\nwritten to {out}")
    return 0


def _notes() -> str:
    from hybridlm.distill.selection.measures import MEANINGS
    from hybridlm.distill.selection.registry import SELECTORS

    width = max(map(len, MEANINGS))
    metrics = [f"  {name:<{width}}  {meaning}" for name, meaning in MEANINGS.items()]
    return "\n".join([shared.listed("methods", SELECTORS.values()), "metrics:", *metrics])


DISTILL_SELECT = Command(
    "distill select",
    "choose the layers that keep attention",
    lambda: (
        SelectedModels,
        SearchSettings,
        SelectorSettings,
        GateSettings,
        OutputSettings,
        CompilationSettings,
    ),
    _run,
    notes=_notes,
)

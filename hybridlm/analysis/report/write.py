"""Which report a path gets, and its file."""

import html
import os
import pathlib
from collections.abc import Sequence

from hybridlm import convert
from hybridlm.analysis.figures.style import RULES
from hybridlm.analysis.report.attention import AttentionText
from hybridlm.analysis.report.comparison import comparison_sections
from hybridlm.analysis.report.model_sections import model_sections
from hybridlm.analysis.report.parts import Parts, section
from hybridlm.analysis.report.results import is_results, result_sections
from hybridlm.analysis.report.run_sections import run_sections
from hybridlm.analysis.run import Run
from hybridlm.analysis.runs import NoRunError, Runs, is_glob
from hybridlm.pages import page, shell
from hybridlm.progress import doing
from hybridlm.runs.opened import MODEL
from hybridlm.runs.workdir import CONFIG, REPORT
from hybridlm.storage import open_path, own_name
from hybridlm.storage.writing import write_text

_PACKAGE = "hybridlm.analysis.report"
_IMPORTS = (
    "from hybridlm.analysis import Results, Run, Runs, figures, newest, open_checkpoint;"
    " from hybridlm.analysis.rows import layer_rows, state_rows"
)


def write_report(
    path: pathlib.Path | str,
    out: pathlib.Path | str | None = None,
    attention: Sequence[AttentionText] = (),
) -> pathlib.Path:
    """Writes the report of what a path leads to, and returns its file.

    Args:
      path: a run, finished or not; a model folder; a folder of runs, or a glob of them; or a folder
        of an experiment's results (tables and figures).
      out: the file; `report.html` in the folder by default, and of a glob in the folder above it.
      attention: weights over texts, for views with exact values.

    Raises:
      RunError: if the path leads to none of these. WriteError: if the report cannot be written.
    """
    with doing("writing the report"):
        return _write(path, out, attention)


def _write(
    path: pathlib.Path | str,
    out: pathlib.Path | str | None,
    attention: Sequence[AttentionText],
) -> pathlib.Path:
    text = os.fspath(path)
    if is_glob(text):
        fixed = text.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0] or "."
        title, folder = text, open_path(fixed)
        parts, body = comparison_sections(Runs(text), text)
    else:
        folder = open_path(text)
        title = own_name(folder)
        parts, body = _of_folder(folder)
    body += section("Attention", *map(parts.view, attention))
    target = folder / REPORT if out is None else open_path(out)
    head = (
        f"<header><h1>{html.escape(title)}</h1>"
        '<button type="button" id="scheme" title="Switch between light and dark">Scheme: system'
        "</button></header>"
        f"<p class=note>The code under each figure needs: <code>{_IMPORTS}</code></p>"
    )
    whole = page(
        title,
        f"{head}\n{body}",
        style=shell.static("report.css", _PACKAGE) + RULES,
        script=shell.static("report.js", _PACKAGE),
        data=parts.data,
    )
    write_text(target, whole, errors="backslashreplace")  # a path in the command may not be UTF-8
    return target


def _of_folder(folder: pathlib.Path) -> tuple[Parts, str]:
    if (folder / CONFIG).is_file() and not convert.is_checkpoint(folder):
        return run_sections(Run(folder))
    if (folder / MODEL).is_file():
        return model_sections(folder)
    try:
        runs = Runs(folder)
    except NoRunError:
        if is_results(folder):
            return result_sections(folder)
        raise
    return comparison_sections(runs, os.fspath(folder))

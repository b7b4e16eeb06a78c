"""`hybridlm report`."""

import dataclasses
import pathlib

from hybridlm.commands.command import Command


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """Of what, and where it goes.

    Attributes:
      workdir: folder of a run, of a model or of runs (a sweep, an experiment), or a glob of runs.
      out: the file; report.html in the folder by default.
      text: also show the attention of the newest checkpoint over this text, of a run or a model.
      layers: whose attention is shown: layer numbers or mixer names, separated by commas.
    """

    workdir: pathlib.Path
    out: pathlib.Path | None = None
    text: str | None = None
    layers: tuple[str, ...] | None = None


def _run(settings: ReportSettings) -> int:
    from hybridlm.analysis.inspected import open_model
    from hybridlm.analysis.report import attention_text, write_report
    from hybridlm.errors import UserError

    shown = []
    if settings.text is not None:
        shown = [attention_text(open_model(settings.workdir), settings.text, settings.layers)]
    elif settings.layers is not None:
        raise UserError("--layers says whose attention over --text is shown: give a text, too")
    print(write_report(settings.workdir, settings.out, shown))
    return 0


REPORT = Command(
    "report",
    "write the report of a run, a model or a sweep, as one HTML file",
    lambda: (ReportSettings,),
    _run,
)

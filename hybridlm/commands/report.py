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
    """

    workdir: pathlib.Path
    out: pathlib.Path | None = None


def _run(settings: ReportSettings) -> int:
    from hybridlm.analysis.report import write_report

    print(write_report(settings.workdir, settings.out))
    return 0


REPORT = Command(
    "report", "write the report of a run, a model or a sweep, as one HTML file",
    lambda: (ReportSettings,), _run,
)  # fmt: skip

"""`hybridlm report`."""

import dataclasses
import pathlib

from hybridlm.commands.command import Command


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """Which run.

    Attributes:
      workdir: folder of a run.
    """

    workdir: pathlib.Path


def _run(settings: ReportSettings) -> int:
    from hybridlm.analysis.report import write_report

    print(write_report(settings.workdir))
    return 0


REPORT = Command(
    "report", "write the report of a run, finished or not", lambda: (ReportSettings,), _run
)

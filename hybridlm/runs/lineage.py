"""The lineage of a run: whose parameters it began with, in `lineage.json`.

A run whose config has `init` writes the file once, when it takes the parameters. The nearest source
comes first, and the lineage of that source follows, so a branch of a branch names both.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from hybridlm.errors import RunError
from hybridlm.runs.json_files import read_json, write_json

FILE = "lineage.json"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Parameters that a run, or the source of a run, began with.

    Attributes:
      path: the source: a workdir or a model folder, as the config named it.
      step: of its checkpoint; None if a model folder does not name it.
      parameters_sha256: of all its parameters (`hybridlm.runs.checkpoint.digest`);
        None in model folders of older versions.
      tokens: that the source was trained on up to this step, counting those of its own source if
        it went on from there; None if it is not known.
      optimizer: whether the optimizer state was taken too.
      fresh: `init.fresh`, the parameters that were not taken.
      weights: "ema" for the moving average of the parameters.
      steps: whose parameters were averaged, in a model folder of such an average.
    """

    path: str
    step: int | None
    parameters_sha256: str | None = None
    tokens: int | None = None
    optimizer: bool = False
    fresh: str = ""
    weights: str = "raw"
    steps: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "steps", tuple(self.steps))  # JSON has lists

    def __str__(self) -> str:
        at = "" if self.step is None else f" at step {self.step}"
        at += f" averaged over steps {', '.join(map(str, self.steps))}" if self.steps else ""
        at += ", the moving average" if self.weights == "ema" else ""
        optimizer = " and its optimizer state" if self.optimizer else ""
        fresh = f" but {self.fresh}" if self.fresh else ""
        sha256 = f" (parameters {self.parameters_sha256})" if self.parameters_sha256 else ""
        return f"{self.path}{at}{optimizer}{fresh}{sha256}"


def described(lineage: Sequence[Origin]) -> str:
    """A lineage as one line."""
    return "; which began from ".join(map(str, lineage))


def read(workdir: pathlib.Path) -> list[Origin]:
    """The lineage of the run in `workdir`, nearest source first; empty for a run from scratch.

    Raises:
      RunError: if the file is damaged.
    """
    path = workdir / FILE
    return parse(read_json(path), path) if path.exists() else []


def parse(records: object, path: pathlib.Path) -> list[Origin]:
    """The origins in the JSON of a file.

    Raises:
      RunError: if they are not a list of origins; it names `path`.
    """
    known = {field.name for field in dataclasses.fields(Origin)}
    try:
        return [Origin(**{k: v for k, v in r.items() if k in known}) for r in records]
    except (TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: its lineage cannot be read ({error})") from None


def write(workdir: pathlib.Path, lineage: Sequence[Origin]) -> None:
    """Writes the lineage of the run in `workdir`."""
    write_json(workdir / FILE, [dataclasses.asdict(origin) for origin in lineage])

"""The table of evaluations: each (kept layers, metric) is measured once, and kept in a file."""

import dataclasses
import fcntl
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from hybridlm.distill.selection.budget import Kept
from hybridlm.errors import RunError
from hybridlm.settings import json_text
from hybridlm.storage.writing import AppendedFile, writing

Values = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure that models are compared by.

    Attributes:
      higher: whether a higher value is better.
    """

    name: str
    higher: bool = True

    def quality(self, value: float) -> float:
        """The value with its sign chosen so that more is better."""
        return value if self.higher else -value


class Evaluations:
    """The values of metrics for sets of kept layers, on each evaluation set.

    What was measured is appended to a file at once. A process that was killed while it wrote leaves
    a last line without its end, which is cut off; all whole lines are used again.

    Attributes:
      measured: number of evaluations made by this object.
      reused: number of answers that were already in the table.
    """

    def __init__(
        self,
        measure: Callable[[Kept, str], Values],
        path: pathlib.Path | None = None,
        identity: Mapping[str, Any] | None = None,
    ):
        """Opens the table, or begins it.

        Args:
          measure: evaluates a model: (kept, name of a metric) -> a value for each evaluation set.
          path: of the file (JSON lines); None keeps the table in memory.
          identity: what the values depend on, ready for JSON: the models and the evaluation sets. Keys
            that the file does not have yet, such as those of a metric's own data, are added to it.

        Raises:
          RunError: if the file is damaged, belongs to other models or evaluation sets, or another
            process has it open.
        """
        self._measure, self._values = measure, {}
        self.measured = self.reused = 0
        self._file = None
        if path is not None:
            self._open(path, dict(identity or {}))

    def __call__(self, kept: Kept, metric: str) -> Values:
        """The metric's value on each evaluation set."""
        key = (frozenset(kept), metric)
        if key in self._values:
            self.reused += 1
        else:
            values = tuple(float(v) for v in self._measure(*key))
            if self._file is not None:
                self._append({"kept": sorted(kept), "metric": metric, "values": values})
            self._values[key] = values
            self.measured += 1
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def rows(self) -> list[dict[str, Any]]:
        """All evaluations: `kept` (sorted), `metric` and `values`."""
        return [
            {"kept": sorted(kept), "metric": metric, "values": list(values)}
            for (kept, metric), values in self._values.items()
        ]

    def close(self) -> None:
        """Closes the file, so that another may open it; what is measured later stays in memory."""
        if self._file is not None:
            self._file.close()
            self._lock.close()
            self._file = None

    def _open(self, path: pathlib.Path, identity: dict[str, Any]) -> None:
        identity = json_text.loads(json_text.dumps(identity))
        self._lock = _locked(path)
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].splitlines()
        found: dict[str, Any] = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = json_text.loads(line)
                if "identity" in row:
                    found |= row["identity"]
                else:
                    key = (frozenset(row["kept"]), row["metric"])
                    self._values[key] = tuple(float(v) for v in row["values"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise RunError(
                    f"{path} is damaged in line {number} ({error}): remove that line,"
                    f" {json_text.shown(line)}"
                ) from None
        if lines and not found:
            raise RunError(
                f"{path} is no table of evaluations: it does not say of which models it is"
            )
        differing = [k for k in identity if k in found and found[k] != identity[k]]
        if differing:
            raise RunError(
                f"{path} is of other evaluations ({', '.join(differing)} differ): name another folder,"
                " or give the settings that it was made with"
            )
        if len(data) > whole:
            with writing(path), path.open("r+b") as file:
                file.truncate(whole)
        self._file = AppendedFile(path)
        new = {k: v for k, v in identity.items() if k not in found}
        if new:
            self._append({"identity": new})

    def _append(self, row: dict[str, Any]) -> None:
        self._file.write(json_text.dumps(row).encode() + b"\n")
        self._file.sync()


def _locked(path: pathlib.Path) -> BinaryIO:
    """The file, made if absent and locked until it is closed or the process ends."""
    with writing(path):
        file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise RunError(f"another process evaluates into {path}") from None
    return file


@dataclasses.dataclass(frozen=True)
class Search:
    """What a selector reads.

    Attributes:
      depth: number of layers of the model.
      layers: the candidates, in ascending order.
      evaluate: values of a metric by kept layers; an `Evaluations`, or a table of scores.
      metrics: the metrics by name.
      gates: trains the joint gates for a budget's share of layers; returns alpha in [0, 1] by
        candidate, and notes.
    """

    depth: int
    layers: tuple[int, ...]
    evaluate: Callable[[Kept, str], Values]
    metrics: Mapping[str, Metric]
    gates: Callable[[float], tuple[Mapping[int, float], Sequence[str]]] | None = None

    @property
    def all(self) -> Kept:
        """Every candidate: the teacher."""
        return frozenset(self.layers)

    def qualities(self, kept: Kept, metric: str) -> Values:
        """The metric on each evaluation set, with signs so that more is better."""
        known = self.metrics[metric]
        return tuple(known.quality(v) for v in self.evaluate(frozenset(kept), metric))

    def quality(self, kept: Kept, metric: str) -> float:
        """The mean over evaluation sets, where more is better; NaN if the model diverged."""
        values = self.qualities(kept, metric)
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan

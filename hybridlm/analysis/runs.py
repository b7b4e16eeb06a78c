"""Several runs side by side: the runs of a sweep or of an experiment."""

import fnmatch
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hybridlm import convert
from hybridlm.analysis.arms import arms
from hybridlm.analysis.measurements import RAW, newest
from hybridlm.analysis.run import Record, Run
from hybridlm.analysis.tables import frame
from hybridlm.errors import RunError
from hybridlm.runs.workdir import CONFIG
from hybridlm.storage import is_remote, objects, open_path

ABSENT = "(none)"  # of a setting that a run does not have, as another kind of mixer
_DEPTH = 3  # folders below one that is named in which runs are looked for
_GLOB = frozenset("*?[")


class NoRunError(RunError):
    """A path leads to no run."""


class Runs:
    """Runs in the order of their names, which are their folders' below the folder they share.

    Tables of several runs begin with the columns `run`, `arm` (what a run is set to beside its
    seed, as text) and the settings that differ.

    Attributes:
      names: unique, in the order of `runs`; "window/lr=0.1" where folders differ above the last.
      runs: opened.
    """

    def __init__(self, *paths: pathlib.Path | str):
        """Finds and opens runs.

        Args:
          paths: each a run, a folder below which are runs, or a glob of such ("sweep/*",
            "gs://bucket/sweep/lr=*"). What matches a glob and is no run is left out.

        Raises:
          NoRunError: if a path leads to no run. UserError: if a file of a run is damaged.
        """
        found = list(dict.fromkeys(path for asked in paths for path in find_runs(asked)))
        self.names: list[str] = _names(found)
        self.runs: list[Run] = [Run(path) for path in found]

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, name: str | int) -> Run:
        """A run by its name or number."""
        if isinstance(name, int):
            return self.runs[name]
        if name not in self.names:
            raise RunError(f"there is no run {name}: there are {', '.join(self.names)}")
        return self.runs[self.names.index(name)]

    def differences(self) -> Any:
        """The settings in which runs differ, a row each, a column for each run."""
        return frame(self.difference_rows(), ["key", *self.names]).set_index("key")

    def summary(self) -> Any:
        """A row for each run: its name, the settings that differ, and its newest figures.

        Evaluations are those of the raw weights of the newest checkpoint that a task was measured on.
        """
        return frame(self.summary_rows())

    def metrics(self, kind: str = "train") -> Any:
        """`Run.metrics` of all runs."""
        return frame(self.joined(lambda run: run.rows(kind)))

    def by_position(self) -> Any:
        """`Run.by_position` of all runs."""
        return frame(self.joined(Run.position_rows))

    def probes(self, kind: str) -> Any:
        """`Run.probes` of all runs."""
        return frame(self.joined(lambda run: run.probe_rows(kind)))

    def evaluations(self) -> Any:
        """`Run.evaluations` of all runs."""
        return frame(self.joined(Run.evaluation_rows))

    def by_depth(self) -> Any:
        """`Run.by_depth` of all runs."""
        return frame(self.joined(Run.depth_rows))

    # --- the same as records, without pandas ---------------------------------------------------

    def varied(self) -> list[str]:
        """Dotted keys of the settings in which runs differ, sorted."""
        return [row["key"] for row in self.difference_rows()]

    @functools.cached_property
    def arms(self) -> dict[str, str]:
        """By a run's name, what it is set to beside its seed: "swa.window=8"."""
        return arms(self.difference_rows(), self.names)

    def difference_rows(self) -> list[Record]:
        """`differences()` as records: key, then the value of each run by its name."""
        settings = [run.flat_settings() for run in self.runs]
        return [
            {"key": key, **dict(zip(self.names, values))}
            for key in sorted({key for of in settings for key in of})
            if _differ(values := [_value(of.get(key, ABSENT)) for of in settings])
        ]

    def summary_rows(self) -> list[Record]:
        """`summary()` as records."""
        figures = []
        for run in self.runs:
            train, heldout = run.rows("train")[-1:], run.rows("eval")[-1:]
            row = {
                **run.progress.at(run.steps_done),
                "steps": (run.settings.get("train") or {}).get("steps"),
                "parameters": run.facts.get("parameters"),
            }
            for kind, found in (("training", train), ("heldout", heldout)):
                for figure in ("loss", "bits_per_byte"):
                    row[f"{kind}_{figure}"] = found[0].get(figure) if found else None
            for result in newest(run.evaluation_rows(), RAW):
                row[f"{result['task']}_{result['figure']}_{result['length']}"] = result["value"]
            figures.append(row)
        return [
            {"run": name, **given, **row}
            for name, given, row in zip(self.names, self._given(), figures)
        ]

    def joined(self, rows: Callable[[Run], Iterable[Record]]) -> list[Record]:
        """The rows of all runs, each begun with `run`, `arm` and the settings that differ."""
        return [
            {"run": name, **given, **row}
            for name, run, given in zip(self.names, self.runs, self._given())
            for row in rows(run)
        ]

    def _given(self) -> list[Record]:
        """Of each run, its arm and the settings that differ."""
        different = self.difference_rows()
        return [
            {"arm": self.arms[name], **{row["key"]: row[name] for row in different}}
            for name in self.names
        ]


def find_runs(path: pathlib.Path | str) -> list[pathlib.Path]:
    """The workdirs that a path leads to, in the order of their names: of a run, of a folder of runs, or of a glob.

    A checkpoint of transformers, which has a config.json too, is no run.

    Raises:
      NoRunError: if it leads to none.
    """
    text = os.fspath(path)
    if is_remote(text):
        found = _find_remote(text)
    elif is_glob(text):
        root = pathlib.Path("/") if text.startswith("/") else pathlib.Path()
        matches = sorted(root.glob(text.lstrip("/")), key=_natural)
        found = [run for match in matches for run in _below(match, 0)]
    else:
        path = open_path(path)
        if not path.is_dir():
            raise RunError(f"{path} is not a folder")
        found = _below(path, _DEPTH)
    if not found:
        raise NoRunError(f"{text} leads to no run: no folder there has a {CONFIG}")
    return found


def is_glob(text: str) -> bool:
    """Whether a path is a pattern; a folder of this machine with such a name is none."""
    return bool(_GLOB & set(text)) and (is_remote(text) or not pathlib.Path(text).is_dir())


def _below(path: pathlib.Path, depth: int) -> list[pathlib.Path]:
    if (path / CONFIG).is_file():
        return [] if convert.is_checkpoint(path) else [path]
    if depth == 0 or not path.is_dir():
        return []
    return [
        run for folder in sorted(path.iterdir(), key=_natural) for run in _below(folder, depth - 1)
    ]


def _find_remote(text: str) -> list[pathlib.Path]:
    text = text.rstrip("/")
    parts = text.split("/")
    fixed = next((i for i, part in enumerate(parts) if _GLOB & set(part)), len(parts))
    base, pattern = "/".join(parts[:fixed]), parts[fixed:]
    open_path(base)  # its bucket is checked
    folders = [key.rpartition("/")[0] for key in objects.keys(base) if key.split("/")[-1] == CONFIG]
    found = []
    for folder in sorted(folders, key=_natural):
        below = folder.split("/") if folder else []
        if pattern:
            same = len(below) == len(pattern)
            same = same and all(map(fnmatch.fnmatchcase, below, pattern))
        else:
            same = len(below) <= _DEPTH
        place = open_path(f"{base}/{folder}" if folder else base)
        if same and not convert.is_checkpoint(place):
            found.append(place)
    return found


def _natural(path: Any) -> list[Any]:
    """Orders numbers in names by size: "lr=8" before "lr=16"."""
    parts = re.split(r"(\d+)", os.fspath(path))
    return [int(part) if part.isdigit() else part for part in parts]


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The ends of the paths after the folders that all share, at least the last folder's name."""
    split = [os.fspath(p if is_remote(p) else p.absolute()).split("/") for p in paths]
    if not split:
        return []
    shortest = min(map(len, split)) - 1
    shared = next((i for i in range(shortest) if len({s[i] for s in split}) > 1), shortest)
    return ["/".join(parts[shared:]) for parts in split]


def _value(value: Any) -> Any:
    """A setting as one cell: lists and empty mappings as text."""
    return str(value) if isinstance(value, list | dict) else value


def _differ(values: Sequence[Any]) -> bool:
    return any(type(v) is not type(values[0]) or v != values[0] for v in values[1:])

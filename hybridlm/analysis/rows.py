"""The records of a run as flat rows, each with the run's progress: step, tokens and FLOPs.

`tokens` counts padding, as `metrics.jsonl` does, and those of the source where a run goes on from
another (`init.keep_step`). `flops` are the model FLOPs of training up to that step.
"""

import dataclasses
import pathlib
import shlex
from collections import Counter
from collections.abc import Iterable
from typing import Any

from hybridlm.errors import RunError
from hybridlm.evals.registry import TASKS
from hybridlm.evals.settings import EvalSettings
from hybridlm.models.accounting import state_bytes
from hybridlm.models.settings import ModelConfig
from hybridlm.probes.table import FILE as PROBES
from hybridlm.runs import metrics
from hybridlm.runs.json_files import read_object
from hybridlm.storage import is_remote, objects

Row = dict[str, Any]
RECORDS = "eval.json"
LAYER_ERROR = "mse_layer_"


class Progress:
    """Tokens and FLOPs at a step of a run, from its records.

    Args:
      records: all of `metrics.jsonl`.
      tokens_per_step: of the run's config; None if it is not known.
    """

    def __init__(self, records: Iterable[Row], tokens_per_step: int | None):
        records = list(records)
        known = next((r for r in records if "tokens" in r), None)
        self._per_step = tokens_per_step
        before = None if known is None or tokens_per_step is None else known["step"]
        self._before = 0 if before is None else known["tokens"] - before * tokens_per_step
        facts = [r for r in records if r["kind"] == "run"]
        self._flops = facts[-1].get("flops_per_token") if facts else None

    def at(self, step: int | None) -> Row:
        """`step`, `tokens` and, where the run recorded its FLOPs a token, `flops`."""
        if step is None or self._per_step is None:
            return {"step": step, "tokens": None, "flops": None}
        tokens = self._before + step * self._per_step
        flops = None if self._flops is None else float(tokens * self._flops)
        return {"step": step, "tokens": tokens, "flops": flops}


def metric_rows(records: Iterable[Row], progress: Progress, kind: str = "train") -> list[Row]:
    """A row for each record of a kind, without its nested values."""
    return [
        {**progress.at(r["step"]), **flat(r), "tokens": progress.at(r["step"])["tokens"]}
        for r in records
        if r["kind"] == kind
    ]


def position_rows(records: Iterable[Row], progress: Progress) -> list[Row]:
    """The held-out loss by position: a row for each evaluation and range of positions."""
    return [
        {**progress.at(r["step"]), **place}
        for r in records
        if r["kind"] == "eval"
        for place in r.get("by_position", ())
        if place["targets"]
    ]


def layer_error_rows(records: Iterable[Row], progress: Progress) -> list[Row]:
    """The squared error of each layer that is distilled block by block, at each recorded step."""
    return [
        {**progress.at(r["step"]), "layer": int(key.removeprefix(LAYER_ERROR)), "error": r[key]}
        for r in records
        if r["kind"] == "train"
        for key in r
        if key.startswith(LAYER_ERROR)
    ]


def probe_files(path: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """(folder, file) of the `probes.jsonl` of a run's training, and those in folders of its workdir."""
    return _files(path, PROBES)


def probe_rows(
    files: Iterable[tuple[str, pathlib.Path]], progress: Progress, kind: str | None = None
) -> list[Row]:
    """A row for each entry of the probes of a kind; without a kind, of all.

    An entry that was measured again counts once, as it was last measured.

    Args:
      files: (folder in the workdir, file) as `probe_files` returns them.
    """
    found: dict[Any, Row] = {}
    for folder, file in files:
        for record in metrics.read(file):
            if kind is None or record["kind"] == kind:
                row = {"probe": record["kind"], **progress.at(record["step"]), **plain(record)}
                row["folder"] = folder
                key = tuple((k, v) for k, v in row.items() if not isinstance(v, float))
                found[key] = row
    return list(found.values())


def evaluation_rows(files: Iterable[tuple[str, pathlib.Path]], progress: Progress) -> list[Row]:
    """A row for each task and length in the `eval.json` of a workdir and its folders.

    `figure` is the name of the task's main figure and `value` that figure; other figures that are
    numbers have columns of their own.
    """
    rows = []
    for folder, record in _evaluations(files):
        for result in record["records"]:
            task = TASKS.get(result["task"])
            figure = task.figure if task else "accuracy"
            rows.append(
                {
                    "task": result["task"],
                    "length": result["length"],
                    **progress.at(record.get("step")),
                    "weights": record.get("weights", "raw"),
                    "figure": figure,
                    "value": result.get(figure),
                    **flat(result),
                    "folder": folder,
                }
            )
    return rows


def evaluation_commands(path: pathlib.Path) -> list[str]:
    """The commands of the evaluations in a workdir and in its folders, without default settings."""
    defaults = {f.name: f.default for f in dataclasses.fields(EvalSettings)}
    commands = []
    for folder, record in _evaluations(evaluation_files(path)):
        words = ["hybridlm", "eval", "--workdir", str(path)]
        if record.get("step") is not None:
            words += ["--step", str(record["step"])]
        if record.get("weights", "raw") != "raw":
            words += ["--weights", record["weights"]]
        for key, value in record.get("settings", {}).items():
            value = tuple(value) if isinstance(value, list) else value
            if key in defaults and value != defaults[key] and value is not None:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words += [f"--{key}", text]
        commands.append(shlex.join([*words, "--out", str(path / folder) if folder else str(path)]))
    return commands


def depth_rows(files: Iterable[tuple[str, pathlib.Path]], progress: Progress) -> list[Row]:
    """The accuracy of tasks with a needle by length and depth (per cent of the text before it)."""
    return [
        {
            "task": result["task"],
            "length": result["length"],
            **progress.at(record.get("step")),
            "weights": record.get("weights", "raw"),
            **flat(cell),
            "folder": folder,
        }
        for folder, record in _evaluations(files)
        for result in record["records"]
        for cell in result.get("by_depth", ())
    ]


def evaluation_files(path: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """The `eval.json` files of a workdir and of its folders, with the folder's name."""
    return _files(path, RECORDS)


def flat(record: Row) -> Row:
    """The entries of a record that are numbers, truth values, texts or nothing."""
    return {k: v for k, v in record.items() if not isinstance(v, list | dict) and k != "kind"}


def plain(record: Row) -> Row:
    """The entries of a probe's record; lists of layers become texts, "0,3"."""
    return {
        k: ",".join(map(str, v)) if isinstance(v, list) else v
        for k, v in record.items()
        if k != "kind" and not isinstance(v, dict)
    }


def read_evaluation(file: pathlib.Path) -> Row:
    """The `step`, `settings` and `records` that `hybridlm eval` wrote into a file.

    Raises:
      RunError: if the file is damaged, or is another program's.
    """
    found = read_object(file)
    records, settings = found.get("records"), found.get("settings", {})
    whole = isinstance(records, list) and isinstance(settings, dict)
    if not whole or not all(
        isinstance(r, dict) and {"task", "length"} <= r.keys() for r in records
    ):
        raise RunError(
            f"{file} is no result of `hybridlm eval`, for it has no records of tasks: give it another"
            " name or folder"
        )
    return found


def _evaluations(files: Iterable[tuple[str, pathlib.Path]]) -> list[tuple[str, Row]]:
    return [(folder, read_evaluation(file)) for folder, file in files]


def _files(path: pathlib.Path, name: str) -> list[tuple[str, pathlib.Path]]:
    """(folder, file) of the files of this name in a folder and in the folders in it."""
    if is_remote(path):
        keys = [k.rpartition("/") for k in objects.keys(path)]
        folders = sorted(folder for folder, _, last in keys if last == name and "/" not in folder)
    else:
        folders = sorted(
            "" if file.parent == path else file.parent.name
            for glob in (name, f"*/{name}")
            for file in path.glob(glob)
        )
    return [(folder, path / folder / name if folder else path / name) for folder in folders]


def layer_rows(model: ModelConfig, length: int) -> list[Row]:
    """A row for each layer: layer, mixer, mechanism, and reach, the tokens that it attends to at
    this length of context (None for a layer with a state that forgets by itself)."""
    return [
        {"layer": i, "mixer": name, "mechanism": mixer.mechanism, "reach": mixer.reach(length)}
        for i, (name, mixer) in enumerate(model.layer_mixers())
    ]


def state_rows(model: ModelConfig) -> list[Row]:
    """Bytes of the decoding state, by mixer and context: mixer, layers, tokens, bytes.

    The bytes are those of the layers with this mixer, their feed-forwards included (`channel_mix`).
    Caches are bfloat16, recurrent states float32.
    """
    names = [name for name, _ in model.layer_mixers()]
    lengths = [2**i for i in range(8, 21)]
    layers_bytes = {tokens: state_bytes(model, tokens) for tokens in lengths}
    return [
        {
            "mixer": mixer,
            "layers": layers,
            "tokens": tokens,
            "bytes": sum(
                held
                for name, held in zip(names, layers_bytes[tokens], strict=True)
                if name == mixer
            ),
        }
        for mixer, layers in Counter(names).items()
        for tokens in lengths
    ]

"""Folders of runs with records, as training, evaluation and probes leave them."""

import dataclasses
import json
import pathlib
from typing import Any

from hybridlm import config as configs
from hybridlm.config import to_dict

ROOT = pathlib.Path(__file__).parent.parent.parent
Record = dict[str, Any]


def smoke_config(**model: Any) -> configs.Config:
    """The demo's config at smoke size, with a vocabulary."""
    config = configs.load(str(ROOT / "configs" / "demo.py") + ":smoke")
    model = {"vocab_size": 320, **model}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


def write_run(
    folder: pathlib.Path, records: list[Record], config: Any = None, environment: Any = None
) -> pathlib.Path:
    """A workdir with these records in `metrics.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = to_dict(smoke_config()) if config is None else config
    (folder / "config.json").write_text(json.dumps(settings))
    if environment:
        (folder / "environment.json").write_text(json.dumps(environment))
    write_lines(folder / "metrics.jsonl", records)
    return folder


def write_lines(file: pathlib.Path, records: list[Record]) -> None:
    """A JSON Lines file, its folder made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def head_records(step: int, scores: list[list[float]]) -> list[Record]:
    """Entries of `retrieval_heads`; `scores` are the masses by layer and head."""
    return [
        {
            "kind": "retrieval_heads",
            "step": step,
            "layer": layer,
            "mixer": "full",
            "head": head,
            "mass": score,
            "copy": score / 2,
            "samples": 4,
            "length": 32,
        }
        for layer, row in enumerate(scores)
        for head, score in enumerate(row)
    ]


def evaluation(step: int, accuracies: dict[int, list[float]]) -> Record:
    """An `eval.json` of the needle task: by length, the accuracy at each depth."""
    records = []
    for length, values in accuracies.items():
        depths = [100 * i / (len(values) - 1) for i in range(len(values))]
        cells = [dict(depth=d, accuracy=v, samples=2) for d, v in zip(depths, values)]
        mean = sum(values) / len(values)
        records.append(dict(task="needle", length=length, accuracy=mean, samples=8, by_depth=cells))
    records.append(dict(task="perplexity", length=64, loss=2.5, bits_per_byte=3.5))
    return {"step": step, "weights": "raw", "settings": {}, "records": records}

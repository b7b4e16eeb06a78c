"""Transfers and distils a pretrained model, for each mixer and each start; writes results/blockwise.json.

What is done already is not done again, so the command goes on where it was stopped.

Run: python -m experiments.distill_then_replace.run TEACHER --out DIR [--steps N] [--minutes N]
"""

import argparse
import gzip
import json
import pathlib
import shutil
import sys
import time

from hybridlm import cli
from hybridlm.runs import metrics
from hybridlm.settings import json_text

HERE = pathlib.Path(__file__).parent
RECIPE = HERE / "recipe.py"
RESULTS = HERE / "results" / "blockwise.json"
CORPUS = "data/corpora/state_of_the_union.jsonl.gz"
MIXERS = {"gdn": {}, "gla": {}, "nha": {"window": 32, "slots": 64}}
STARTS = ("calibrated", "copied", "fresh")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("teacher")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--mixers", default=",".join(MIXERS))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=60, help="begin no arm after this time")
    given = parser.parse_args()
    begun = time.monotonic()
    text = given.out / "calibration.txt"
    if not text.exists():
        text.parent.mkdir(parents=True, exist_ok=True)
        documents = gzip.open(CORPUS, "rt", encoding="utf-8").readlines()
        text.write_text("\n".join(json.loads(line)["text"] for line in documents[-2:]))
    for mixer in given.mixers.split(","):
        for start in STARTS:
            if time.monotonic() - begun < 60 * given.minutes:
                _arm(given, mixer, start, text)
    return 0


def _arm(given: argparse.Namespace, mixer: str, start: str, text: pathlib.Path) -> None:
    folder = given.out / f"{mixer}-{start}"
    student, run = folder / "student", folder / "run"
    if not (student / "model.json").exists():
        shutil.rmtree(student, ignore_errors=True)
        words = [
            "--mixer",
            mixer,
            "--settings",
            json.dumps(MIXERS[mixer], allow_nan=False),
            "--out",
            str(student),
        ]
        if start == "calibrated":
            tokens = str(16 * given.length)
            words += ["--calibrate", str(text), "--calibration_tokens", tokens]
            words += ["--calibration_length", str(given.length), "--calibration_steps", "8"]
        words += ["--fresh"] if start == "fresh" else []
        _call("distill", "transfer", given.teacher, *words)
    arg = f"student={student},teacher={given.teacher},steps={given.steps}"
    arg += f",length={given.length},batch={given.batch}"
    _call("train", "--config", f"{RECIPE}:{arg}", "--workdir", str(run))
    records = metrics.read(run / metrics.FILE)
    found = json_text.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    trained = [r for r in records if r["kind"] == "train"]
    teacher = next(r["teacher"] for r in records if r["kind"] == "run")
    found[f"{mixer} {start}"] = {
        "steps": [r["step"] for r in trained],
        "relative_error": [r["relative_error"] for r in trained],
        "first": {k: v for k, v in trained[0].items() if k.startswith("mse_layer_")},
        "last": {k: v for k, v in trained[-1].items() if k.startswith("mse_layer_")},
        "tokens_per_second": trained[-1].get("tokens_per_second"),
        "teacher_forward_tokens_per_second": teacher["tokens_per_second"],
        "heldout_loss": [r["loss"] for r in records if r["kind"] == "eval"],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json_text.dumps(found, indent=1) + "\n")


def _call(*words: str) -> None:
    code = cli.main(list(words))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())

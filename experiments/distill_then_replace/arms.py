"""Stages 0 and 1: transfers and distils a mixer from one start, block by block.

An arm's folder has `transfer.json` (the error before any step), `run/` and, when it is done, `arm.json`. Its
parameters are then removed, unless they are asked for: ten arms would take 15 GB.
"""

import dataclasses
import gzip
import json
import pathlib
import shutil

from experiments.distill_then_replace.usage import measured
from hybridlm import cli
from hybridlm.data.tokenization import Splitter, text_digest
from hybridlm.errors import UserError
from hybridlm.runs import metrics
from hybridlm.runs.json_files import read_json, write_json
from hybridlm.storage.writing import write_text

RECIPE = pathlib.Path(__file__).parent / "recipe.py"
CORPUS = "data/corpora/state_of_the_union.jsonl.gz"
HELDOUT_FRACTION = 0.05  # the default of `data.heldout_fraction`
MIXERS = {"gdn": {}, "gla": {}, "nha": {"window": 32, "slots": 64}}
STARTS = ("calibrated", "copied", "fresh")
DONE = "arm.json"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One distillation.

    Attributes:
      mixer, start: keys of MIXERS, and one of STARTS.
      steps: of training; length, batch: tokens of a sequence, and sequences of a step.
      name: of its folder.
      calibration: tokens that a calibrated start is fitted on.
      keep: whether its parameters are kept.
    """

    mixer: str
    start: str
    steps: int
    length: int
    batch: int
    name: str
    calibration: int = 1024
    keep: bool = False


def run(arm: Arm, teacher: pathlib.Path, workdir: pathlib.Path) -> None:
    """Trains what is left of the arm.

    Args:
      teacher: a model folder. workdir: of the experiment.
    """
    folder = workdir / arm.name
    if (folder / DONE).exists():
        return
    student, trained = folder / "student", folder / "run"
    with measured(workdir, f"blockwise: {arm.name}"):
        if not (student / "model.json").exists():
            shutil.rmtree(student, ignore_errors=True)
            call("distill", "transfer", str(teacher), *_transfer(arm, student, workdir))
        argument = f"student={student},teacher={teacher},steps={arm.steps}"
        argument += f",length={arm.length},batch={arm.batch}"
        call("train", "--config", f"{RECIPE}:{argument}", "--workdir", str(trained))
        write_json(folder / DONE, {**dataclasses.asdict(arm), **_result(trained)})
        if not arm.keep:
            shutil.rmtree(student)
            shutil.rmtree(trained / "checkpoints")


def read(workdir: pathlib.Path, name: str) -> dict | None:
    """The result of an arm; None before it is done."""
    path = workdir / name / DONE
    return read_json(path) if path.exists() else None


def call(*words: str) -> None:
    """Runs a command of hybridlm in this process.

    Raises:
      UserError: if it fails; it has said why.
    """
    if cli.main(list(words)):
        raise UserError(f"`hybridlm {' '.join(words[:2])}` failed")


def _transfer(arm: Arm, student: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    settings = json.dumps(MIXERS[arm.mixer], allow_nan=False)
    words = ["--mixer", arm.mixer, "--settings", settings, "--out", str(student)]
    if arm.start == "fresh":
        words += ["--fresh"]
    if arm.start == "calibrated":
        tokens = str(arm.calibration)
        words += ["--calibrate", str(_calibration(workdir)), "--calibration_tokens", tokens]
        words += ["--calibration_length", str(arm.length), "--calibration_steps", "8"]
    return words


def _calibration(workdir: pathlib.Path) -> pathlib.Path:
    """A file with the newest address that is trained on; held-out ones would spoil the evaluation."""
    path = workdir / "calibration.txt"
    if not path.exists():
        splitter, texts = Splitter(HELDOUT_FRACTION), []
        with gzip.open(CORPUS, "rt", encoding="utf-8") as file:
            for line in file:
                text = json.loads(line)["text"]
                if splitter.split_of(text_digest(text.encode())) == "train":
                    texts.append(text)
        write_text(path, texts[-1])  # whole at once: another arm may read it
    return path


def _result(run: pathlib.Path) -> dict:
    records = metrics.read(run / metrics.FILE)
    trained = [r for r in records if r["kind"] == "train"]
    first = next(r for r in records if r["kind"] == "run")
    layers = sorted(int(k.removeprefix("mse_layer_")) for k in trained[0] if "mse_layer_" in k)
    return {
        "layers": layers,
        "step": [r["step"] for r in trained],
        "relative_error": [r["relative_error"] for r in trained],
        "mse": [[r[f"mse_layer_{i}"] for i in layers] for r in trained],
        "tokens_per_second": [r.get("tokens_per_second") for r in trained],
        "teacher_forward_tokens_per_second": first["teacher"]["tokens_per_second"],
        "heldout_loss": [r["loss"] for r in records if r["kind"] == "eval"],
    }

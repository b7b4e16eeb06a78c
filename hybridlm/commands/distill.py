"""`hybridlm distill transfer` and `hybridlm distill hype`."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from hybridlm.commands.command import Command
from hybridlm.errors import UserError
from hybridlm.settings.bounds import Above, NonNegativeInt, PositiveInt, settings
from hybridlm.settings.json_text import parse_json
from hybridlm.settings.text import TOKENS


@settings
class TransferSettings:
    """Which teacher, which mixer, and where the student goes.

    Attributes:
      teacher: a run, a model folder or a checkpoint of transformers, with softmax attention.
      out: new folder for the student.
      mixer: kind of the new mixer.
      layers: the layers that get it: all with softmax attention, or numbers such as 0-3,7.
      settings: the new mixer's own settings as JSON, e.g. {"window": 64}; others fit the teacher.
      step: of a run's checkpoint; the newest by default.
      weights: the parameters of the step, or their moving average (train.ema_decay).
      seed: of the parameters that start fresh.
      fresh: copy nothing into the new mixers, for comparison.
      calibrate: a text file, on which the fresh parameters are fitted to the teacher's outputs.
      calibration_tokens: of the text, at most.
      calibration_length: tokens of a sequence of calibration.
      calibration_steps: gradient steps of calibration.
    """

    teacher: pathlib.Path
    out: pathlib.Path
    mixer: str
    layers: str = "all"
    settings: str = "{}"
    step: int | None = None
    weights: Literal["raw", "ema"] = "raw"
    seed: NonNegativeInt = 0
    fresh: bool = False
    calibrate: pathlib.Path | None = None
    calibration_tokens: PositiveInt = dataclasses.field(default=16_384, metadata=TOKENS)
    calibration_length: PositiveInt = dataclasses.field(default=512, metadata=TOKENS)
    calibration_steps: NonNegativeInt = 50


@settings
class HypeSettings:
    """Which hybrid, and where the changed one goes.

    Attributes:
      model: a run or a model folder.
      out: new folder for the model.
      scale: a of the logits' factor log_a(t + a); no factor by default.
      step: of a run's checkpoint; the newest by default.
    """

    model: pathlib.Path
    out: pathlib.Path
    scale: Annotated[float, Above(1)] | None = None
    step: int | None = None


def _transfer(given: TransferSettings) -> int:
    """Writes a model folder, and says what is copied, fresh and not taken over."""
    from hybridlm.data.files import utf8
    from hybridlm.distill.calibrate import calibrate, text_batches
    from hybridlm.distill.transfer import read_layers, transfer
    from hybridlm.runs import open_model, save_model
    from hybridlm.runs.opened import check_new
    from hybridlm.storage import open_path

    check_new(given.out)
    mixer = {**_object(given.settings), "kind": given.mixer}
    text = ""
    if given.calibrate is not None:
        text = utf8(open_path(given.calibrate).read_bytes(), f"--calibrate {given.calibrate}")
    teacher = open_model(given.teacher, given.step, given.weights)
    layers = read_layers(given.layers, teacher.config.depth)
    found = transfer(teacher, mixer, layers, given.seed, copy=not given.fresh)
    print("\n".join(found.describe()))
    student = found.student
    if given.calibrate is not None:
        batches = text_batches(teacher, text, given.calibration_tokens, given.calibration_length)
        fitted = calibrate(teacher, found, batches, given.calibration_steps)
        student = fitted.student
        print("squared error over the teacher's mean square, before and after calibration")
        for layer in found.layers:
            print(f"  layer {layer:>3}  {fitted.before[layer]:.4f}  {fitted.after[layer]:.4f}")
    save_model(student, given.out)
    print(f"the student, {student.model.count():,} parameters, is written to {given.out}")
    return 0


def _hype(given: HypeSettings) -> int:
    """Writes a model folder."""
    from hybridlm.distill.hype import with_hype
    from hybridlm.runs import open_model, save_model
    from hybridlm.runs.opened import check_new

    check_new(given.out)
    changed = with_hype(open_model(given.model, given.step), given.scale)
    save_model(changed, given.out)
    print(
        f"the model with the layers {' '.join(changed.config.layout.labels)} is written to {given.out}"
    )
    return 0


def _object(text: str) -> dict:
    """The JSON object in a text.

    Raises:
      UserError: if it is none.
    """
    try:
        found = parse_json(text)
        reason = "" if isinstance(found, dict) else "no JSON object"
    except (ValueError, RecursionError) as error:
        found, reason = None, str(error)
    if reason:
        raise UserError(
            f'--settings is {text[:200]!r} ({reason}): write a JSON object, such as {{"window": 64}}'
        )
    return found


DISTILL_TRANSFER = Command(
    "distill transfer",
    "give layers of a transformer another mixer, with its parameters",
    lambda: (TransferSettings,),
    _transfer,
    positional=("teacher",),
)
DISTILL_HYPE = Command(
    "distill hype",
    "take RoPE out of a hybrid's full attention",
    lambda: (HypeSettings,),
    _hype,
    positional=("model",),
)

"""`hybridlm convert`."""

import pathlib
from typing import Literal

from hybridlm.commands.command import Command
from hybridlm.settings.bounds import settings


@settings
class ConvertSettings:
    """Which way, from where and to where.

    Attributes:
      action: import reads a checkpoint of transformers (a folder of safetensors, or a GGUF file) and
        writes a model folder; export reads a run or a model folder and writes such a checkpoint.
      from_: the checkpoint, or the run or model folder.
      out: new folder.
      step: export the checkpoint of this step; the newest by default.
      weights: export the parameters of the step, or their moving average (train.ema_decay).
      architecture: export into this class of transformers; by default the one that the model came
        from, or else the first that fits.
      dtype: of the exported tensors.
    """

    action: Literal["import", "export"]
    from_: pathlib.Path
    out: pathlib.Path
    step: int | None = None
    weights: Literal["raw", "ema"] = "raw"
    architecture: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def _run(settings: ConvertSettings) -> int:
    return {"import": _import, "export": _export}[settings.action](settings)


def _import(settings: ConvertSettings) -> int:
    """Writes a model folder, which `eval`, `generate`, `probe` and `train --init_from` take."""
    from hybridlm import convert
    from hybridlm.errors import UserError
    from hybridlm.runs import open_model, save_model

    if not convert.is_checkpoint(settings.from_):
        convert.open_checkpoint(settings.from_)  # raises the sentence of a folder that is none
    if settings.step is not None or settings.weights != "raw" or settings.architecture is not None:
        raise UserError("convert import takes no --step, --weights or --architecture")
    opened = open_model(settings.from_)
    save_model(opened, settings.out)
    print(
        f"{opened.settings['architecture']}, {opened.model.count():,} parameters, is written to"
        f" {settings.out}"
    )
    return 0


def _export(settings: ConvertSettings) -> int:
    """Writes config.json, safetensors and the tokenizer's files."""
    from hybridlm import convert
    from hybridlm.runs import open_model

    opened = open_model(settings.from_, settings.step, settings.weights)
    length = opened.data.seq_len if opened.data else opened.settings.get("length")
    found = convert.export(
        opened.model,
        opened.params,
        settings.out,
        tokenizer=opened.tokenizer,
        architecture=settings.architecture,
        preferred=opened.settings.get("architecture"),
        length=length,
        dtype=settings.dtype,
    )
    print(
        f"{found.family.architecture}, {opened.model.count():,} parameters, is written to"
        f" {settings.out}"
    )
    return 0


CONVERT = Command(
    "convert",
    "read a checkpoint of transformers or a GGUF file, or write one",
    lambda: (ConvertSettings,),
    _run,
    positional=("action",),
)

"""Distils a student: block by block, or towards the teacher's probabilities; or finetunes it.

The argument is "student=DIR,teacher=PATH", and optionally objective=kl or none, steps=N, length=N, batch=N.
The model and the tokenizer are the student's: a model folder or a run.

Hardware: 2 CPU cores for SmolLM2-135M; 7 GB of memory, 13 GB with kl.
Expected: blockwise, the squared error of each layer falls; see README.md.
Run:      hybridlm train --config experiments/distill_then_replace/recipe.py:student=DIR,teacher=PATH
          --workdir DIR
"""

import json
import pathlib

from ml_collections import ConfigDict

CORPUS = "data/corpora/state_of_the_union.jsonl.gz"
DEFAULTS = dict(objective="blockwise", steps=16, length=256, batch=4)
#: By objective, the rates of HALO's stages 1 to 3 (arXiv 2601.22156): peak, and the last over the peak.
RATES = dict(blockwise=(1e-3, 0.01), kl=(1e-4, 0.1), none=(1e-5, 1.0))


def get_config(arg: str = "") -> ConfigDict:
    given = DEFAULTS | dict(item.split("=", 1) for item in arg.split(",") if item)
    student = pathlib.Path(given["student"])
    model, tokenizer = _read(student)
    steps, objective = int(given["steps"]), given["objective"]
    rate, last = RATES[objective]

    c = ConfigDict()
    c.model = model
    c.data = dict(
        sources=dict(addresses=dict(kind="jsonl", path=CORPUS)),
        tokenizer=tokenizer,
        seq_len=int(given["length"]),
        batch_size=int(given["batch"]),
    )
    c.optimizer = dict(
        lr=rate,
        schedule="cosine",
        warmup_steps=min(50, steps // 8),
        final_lr_fraction=last,
        weight_decay=0.0,
    )
    c.train = dict(
        steps=steps,
        log_every=1,
        eval_every=steps,
        eval_sequences=8,
        checkpoint_every=min(steps, 64),
        keep_checkpoints=1,
        tensorboard=False,
    )
    c.init = dict(path=str(student))
    if objective != "none":
        c.teacher = dict(path=given["teacher"], objective=objective)
    return c


def _read(student: pathlib.Path) -> tuple[dict, dict]:
    """The settings of the model and of the tokenizer."""
    file = student / "model.json"
    if not file.exists():  # a run, whose tokenizer's path is not relative to it
        settings = json.loads((student / "config.json").read_text())
        return settings["model"], settings["data"]["tokenizer"]
    settings = json.loads(file.read_text())
    tokenizer = {k: v for k, v in settings["tokenizer"].items() if k != "fingerprint"}
    if tokenizer.get("path") is not None:
        tokenizer["path"] = str(student / tokenizer["path"])
    return settings["model"], tokenizer

"""Distils a transferred student: block by block, or towards the teacher's probabilities.

The argument is "student=DIR,teacher=PATH", and optionally objective=kl, steps=N, length=N, batch=N. The
model and the tokenizer are those of the student's folder, which `hybridlm distill transfer` wrote.

Hardware: 2 CPU cores for SmolLM2-135M; about 3 GB of memory.
Expected: the squared error of each layer falls; see README.md.
Run:      hybridlm train --config experiments/distill_then_replace/recipe.py:student=DIR,teacher=PATH
          --workdir DIR
"""

import json
import pathlib

from ml_collections import ConfigDict

CORPUS = "data/corpora/state_of_the_union.jsonl.gz"
DEFAULTS = dict(objective="blockwise", steps=16, length=256, batch=4)


def get_config(arg: str = "") -> ConfigDict:
    given = DEFAULTS | dict(item.split("=", 1) for item in arg.split(",") if item)
    student = pathlib.Path(given["student"])
    settings = json.loads((student / "model.json").read_text())
    tokenizer = {k: v for k, v in settings["tokenizer"].items() if k != "fingerprint"}
    if tokenizer.get("path") is not None:
        tokenizer["path"] = str(student / tokenizer["path"])
    steps, blockwise = int(given["steps"]), given["objective"] == "blockwise"

    c = ConfigDict()
    c.model = settings["model"]
    c.data = dict(
        sources=dict(addresses=dict(kind="jsonl", path=CORPUS)),
        tokenizer=tokenizer,
        seq_len=int(given["length"]),
        batch_size=int(given["batch"]),
    )
    # HALO's stage 1 and stage 2 (arXiv 2601.22156): cosine from 1e-3, or from 1e-4, to 1e-5
    c.optimizer = dict(
        lr=1e-3 if blockwise else 1e-4,
        schedule="cosine",
        warmup_steps=min(50, steps // 8),
        final_lr_fraction=0.01 if blockwise else 0.1,
        weight_decay=0.0,
    )
    c.train = dict(
        steps=steps,
        log_every=1,
        eval_every=steps,
        eval_sequences=8,
        checkpoint_every=max(steps // 2, 1),
        keep_checkpoints=1,
        tensorboard=False,
    )
    c.init = dict(path=str(student))
    c.teacher = dict(path=given["teacher"], objective=given["objective"])
    return c

"""Finetunes a model that `convert.py` wrote: feed-forwards frozen, next-token loss, the paper's rate.

The argument is "student=DIR", and optionally steps=N, length=N, batch=N, and teacher=PATH, with which the
model learns the teacher's probabilities instead (objective=kl). Model and tokenizer are the student's.

Hardware: 2 CPU cores and 7 GB of memory for SmolLM2-135M: 32 steps of 512 tokens at 8.4 seconds a step.
Expected: the loss and the divergence from the teacher fall; README.md has those of the 32 steps.
Run:      hybridlm train --config experiments/native_hybrid_attention/finetune.py:student=DIR --workdir DIR
"""

from ml_collections import ConfigDict

from experiments.distill_then_replace import recipe

FROZEN = "layers.*.mlp.*"  # arXiv 2510.07019: "feed-forward frozen"
RATE = 3e-5


def get_config(arg: str = "") -> ConfigDict:
    given = dict(item.split("=", 1) for item in arg.split(",") if item)
    given.setdefault("objective", "kl" if "teacher" in given else "none")
    c = recipe.get_config(",".join(f"{key}={value}" for key, value in given.items()))
    c.optimizer.lr = RATE
    c.optimizer.final_lr_fraction = 0.1
    c.optimizer.freeze = FROZEN
    return c

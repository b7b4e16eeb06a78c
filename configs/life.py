"""The life of one model on the demo's corpus: pretrain, decay, extend 256 to 1,024 tokens, fine-tune.

Each stage is a run of its own, and begins with the parameters of the one before it. `make life` runs
all of them; docs/runs.md, "Stages", says what each does.

Hardware: 2 CPU cores, 5 to 8 minutes of CPU time for the four stages (12 minutes on a busy machine).
Expected: held-out loss of 1.50 nats after pretraining, 1.35 after the decay and, at 1,024 tokens, 1.31
          after the extension; by `hybridlm eval --tasks perplexity --lengths 1024`, 1.37 before the
          extension and 1.34 after it. After fine-tuning 0.01 nats on answers, and 97% of the
          held-out answers exactly right.
Run:      hybridlm train --config configs/life.py:pretrain --workdir runs/life/pretrain
          hybridlm branch runs/life/pretrain --decay 100 --workdir runs/life/decay
          hybridlm train --config configs/life.py:extend --workdir runs/life/extend
          hybridlm train --config configs/life.py:finetune --workdir runs/life/finetune
"""

from ml_collections import ConfigDict

from common import parse_arg, smoke
from demo import get_config as demo
from finetune import get_config as finetune

RUNS = "runs/life"


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: a stage, "pretrain" (default), "extend" or "finetune"; and "smoke" (seconds)."""
    flags = parse_arg(arg, pretrain=False, extend=False, finetune=False, smoke=False)
    c = demo()
    c.model.mixers.full.rope = dict(theta=10_000)
    c.data.bigram_baseline = False
    c.optimizer = dict(lr=3e-3, schedule="constant", warmup_steps=30, weight_decay=0.1)
    c.train.steps, c.train.eval_every, c.train.checkpoint_every = 300, 100, 100
    if flags["extend"] or flags["finetune"]:
        # The base is as much larger as the context is longer, or somewhat more.
        c.model.mixers.full.rope.theta = 50_000
        c.data.seq_len, c.data.batch_size = 1024, 2
        c.optimizer = dict(lr=1e-3, schedule="cosine", warmup_steps=10, weight_decay=0.1)
        c.train.steps, c.train.eval_every, c.train.checkpoint_every = 60, 60, 60
        c.init = dict(path=f"{RUNS}/decay")
    if flags["finetune"]:
        tuned = finetune()
        c.data.sources, c.data.packing, c.sample = tuned.data.sources, "best_fit", tuned.sample
        c.optimizer.lr = tuned.optimizer.lr
        c.train.steps, c.train.eval_every, c.train.checkpoint_every = 200, 100, 100
        c.init = dict(path=f"{RUNS}/extend")
    if flags["smoke"]:
        length = 256 if "init" in c else 64
        c = smoke(c)
        c.data.seq_len = length
    return c

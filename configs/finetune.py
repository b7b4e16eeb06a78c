"""The demo's model, fine-tuned to answer: it says two words again in capitals.

Only the answers have loss. The run begins with the parameters of `runs/demo`, so train that first.

Hardware: 2 CPU cores, 1 minute (3 minutes with other work on them).
Expected: held-out loss of the answers below 0.02 nats (0.0044 measured; 3 at the start), and 97% of the
          held-out answers exactly right when decoded greedily (99% measured; none at the start):
          hybridlm eval --workdir runs/finetune --tasks answers --lengths 256 --samples 150
Run:      hybridlm train --config configs/finetune.py --workdir runs/finetune
"""

from ml_collections import ConfigDict

from common import parse_arg, smoke
from demo import get_config as demo


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine, with a new model)."""
    flags = parse_arg(arg, smoke=False)
    c = demo()
    c.data.sources = dict(capitals=dict(kind="prompts", path="data/examples/capitals.jsonl.gz"))
    c.data.packing = "best_fit"
    c.optimizer = dict(lr=2e-3, schedule="cosine", warmup_steps=10, weight_decay=0.1)
    c.train.steps, c.train.eval_every, c.train.checkpoint_every = 200, 100, 100
    c.sample = dict(prompt="state union = ", tokens=20, temperature=0.0)
    if flags["smoke"]:
        return smoke(c)
    c.init = dict(path="runs/demo")
    return c

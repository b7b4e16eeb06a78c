"""Native Hybrid Attention of 340M parameters from scratch, at the paper's budget (arXiv 2510.07019).

30,720 steps of 524,288 tokens, 16.1B in all (the paper: 15B). `scratch.py` says what is the authors' and what is
ours.

Hardware: the authors took 16 GPUs. Not trained here; `:smoke` runs on a CPU.
Expected: unknown: the paper's table at this size is not in the sources that this was made from.
Run:      hybridlm train --config configs/nha/nha_340m.py --workdir runs/nha_340m
"""

from ml_collections import ConfigDict

from scratch import scratch


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "full" (every eighth layer sees all tokens), "smoke" (seconds, on any machine)."""
    return scratch(arg, width=1024, hidden=2816, steps=30_720)

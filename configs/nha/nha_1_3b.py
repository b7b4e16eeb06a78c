"""Native Hybrid Attention of 1.3B parameters from scratch, at the paper's budget (arXiv 2510.07019).

190,735 steps of 524,288 tokens, 100B in all. `scratch.py` says what is the authors' and what is ours.

Hardware: GPUs or TPUs with memory for 21 GB of parameters, gradients and moments. Not
          trained here; `:smoke` runs on a CPU.
Expected: recall 46.43, commonsense 52.89 and 16.16 on WikiText (perplexity), by the paper.
Run:      hybridlm train --config configs/nha/nha_1_3b.py --workdir runs/nha_1_3b
"""

from ml_collections import ConfigDict

from scratch import scratch


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "", "full" (every eighth layer sees all tokens), "smoke" (seconds, on any machine)."""
    return scratch(arg, width=2048, hidden=5632, steps=190_735)

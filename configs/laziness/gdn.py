"""Gated DeltaNet and full attention in turn, at 16k (arXiv 2606.15378).

One column of the paper's matrix: sizes S1 to S5 (15M to 477M parameters without embeddings), token
budgets of 100 to 1000 a parameter, long and short documents 1:1; see `hybridlm/config/laziness.py`
for what of it is published and what is ours. It reads token shards from data/tokens/long and
data/tokens/short, which `hybridlm tokenize` writes. `sweep()` yields all 30 points.

Hardware: an accelerator for S1 to S3, a pod for S4 and S5 (--config.mesh.fsdp=...).
Expected: not run here; the paper's S5 at 100B tokens has RULER 16K of 46.13 with windows of 128.
Run:      hybridlm train --config configs/laziness/gdn.py:S1,100n --workdir runs/gdn-S1-100n
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from hybridlm.config import laziness


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "S1" to "S5", "100n" to "1000n", "nope", "smoke", with commas between."""
    return laziness.recipe(arg, "gdn")


def sweep() -> Iterator[dict[str, Any]]:
    """Flat overrides for each size and token budget."""
    return laziness.sweep("gdn")

"""Helpers that recipes share: their argument, its flag "smoke", and the small runs of `configs/mixers`.

This file is not a recipe. Recipes in this folder and in the folders in it import it as `common`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from hybridlm.errors import ConfigError
from hybridlm.models.pattern import expand


def small_run() -> ConfigDict:
    """Data, optimizer and length of the runs in `configs/mixers`; the recipe adds the model.

    Trains on the bytes of the State of the Union addresses, 150 steps of 8 sequences of 256 tokens.
    All mixers have the same data and steps, so their held-out losses are comparable.
    """
    c = ConfigDict()
    c.seed = 0
    c.data = ConfigDict()
    c.data.sources = dict(
        addresses=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
    )
    c.data.seq_len, c.data.batch_size = 256, 8
    c.optimizer = dict(lr=3e-3, schedule="cosine", warmup_steps=20, weight_decay=0.1)
    c.train = ConfigDict()
    c.train.steps, c.train.log_every = 150, 10
    c.train.eval_every, c.train.checkpoint_every, c.train.eval_sequences = 150, 150, 128
    return c


def smoke(c: Any) -> Any:
    """Shrinks recipe `c` (a ConfigDict, changed in place and returned) to seconds on a CPU.

    The pattern appears once, with the same kinds of layers; widths, windows and steps become tiny.
    """
    mixers = list(_all_mixers(c.model.mixers))
    heads = [m.heads for m in mixers if m.get("heads")]
    c.model.width = min(c.model.width, 16 * math.lcm(*heads))
    for feedforward in (c.model.mlp, *c.model.get("feedforwards", {}).values()):
        if feedforward is not None:
            feedforward.hidden = min(feedforward.hidden, 128)
    c.model.depth = sum(len(expand(c.model.get(k, ""))) for k in ("prefix", "pattern", "suffix"))
    for mixer in mixers:
        for span in ("window", "chunk", "block"):
            if mixer.get(span):
                mixer[span] = min(mixer[span], 16)
        if mixer.get("head_dim"):
            mixer.head_dim = 16
    c.data.seq_len, c.data.batch_size = 64, 4
    c.train.steps, c.train.log_every = 8, 2
    c.train.eval_every, c.train.checkpoint_every, c.train.eval_sequences = 4, 4, 8
    c.optimizer.warmup_steps = min(c.optimizer.get("warmup_steps", 0), 2)
    if c.optimizer.get("decay_steps"):
        c.optimizer.decay_steps = 2
    return c


def _all_mixers(mixers: Mapping[str, Any]) -> Iterator[Any]:
    """Every mixer, including those that are branches of other mixers."""
    for mixer in mixers.values():
        yield mixer
        yield from _all_mixers(mixer.get("branches") or {})


def parse_arg(arg: str | None, **flags: bool) -> dict[str, bool]:
    """Reads a recipe's argument: a comma-separated subset of `flags`, e.g. "smoke".

    Raises:
      ConfigError: for a name that is not a flag of the recipe.
    """
    chosen = [a for a in (arg or "").split(",") if a]
    for name in chosen:
        if name not in flags:
            raise ConfigError(f"unknown recipe argument {name!r}: valid are: {', '.join(flags)}")
    return {name: name in chosen or default for name, default in flags.items()}

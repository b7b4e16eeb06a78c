"""Induction heads: on repeated random tokens, attention to the token after the same token's last place."""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from hybridlm.models.params import Model, Params
from hybridlm.probes.heads import layers_with_heads
from hybridlm.probes.layers import View, mixer_names, over_layers
from hybridlm.probes.probe import Probe, Subject
from hybridlm.probes.prompts import Prompt, Prompts
from hybridlm.probes.table import Table

LONGEST = 256  # tokens of a prompt where no length is given: two copies of half as many


@dataclasses.dataclass(frozen=True)
class InductionHead:
    """A head's score in [0, 1]: its mean attention to the token after the last copy of its own.

    Attributes:
      score: averaged over the queries of the second copy and over prompts.
    """

    layer: int
    mixer: str
    head: int
    score: float


def repeated_prompts(
    vocab_size: int, length: int, samples: int, seed: int, without: Collection[int] = ()
) -> Prompts:
    """Random tokens twice in a row.

    Args:
      length: tokens of a prompt, both copies together; an odd one is rounded down.
      without: ids that are not drawn: those of special tokens.
    """
    rng = np.random.default_rng(seed)
    ids = np.setdiff1d(np.arange(vocab_size), np.array([*without], np.int64))
    period = max(length // 2, 2)
    prompts = []
    for _ in range(samples):
        tokens = np.tile(rng.choice(ids, period), 2).astype(np.int32)
        prompts.append(Prompt(tokens, [(1, period)], (period + 1, 2 * period)))
    return Prompts.of(prompts)


def induction_heads(
    model: Model,
    params: Params,
    prompts: Prompts,
    *,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> Table[InductionHead]:
    """Scores every attention head by prefix matching (arXiv 2209.11895, section "Head Activation").

    Args:
      prompts: of `repeated_prompts`.
    """
    found = over_layers(
        model, params, prompts, _scores, layers=layers_with_heads(model), batch=batch, dtype=dtype
    )
    names = mixer_names(model)
    entries = [
        InductionHead(layer, names[layer], h, float(score_NH[:, h].mean()))
        for layer, score_NH in found.items()
        for h in range(score_NH.shape[1])
    ]
    return Table(
        "induction_heads",
        "attention from a token to the one that followed it before, on random tokens twice in a row",
        "arXiv 2209.11895",
        tuple(entries),
    )


def _scores(view: View):
    """The score (B, H) of each head of a layer."""
    rows_BQ = view.batch.rows_BQ
    attention = view.block.mixer.attention_rows(view.mixer_input_BTD, view.context, rows_BQ)
    # The first row is the first token of the second copy, whose own last place is token 0.
    source_BQ = rows_BQ - rows_BQ[:, :1] + 1
    probs_BHQ = jnp.take_along_axis(
        attention.probs_BHQT, jnp.maximum(source_BQ, 0)[:, None, :, None], axis=-1
    )[..., 0]
    return jnp.mean(probs_BHQ, axis=-1)


def _run(subject: Subject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    yield induction_heads(subject.model, params, subject.repeated, **subject.options)


INDUCTION_HEADS = Probe(
    "induction_heads",
    "attention of every head to the token that followed the same token before",
    "prefix matching (arXiv 2209.11895): on random tokens twice in a row (`--length` together, 256 by"
    " default at most), the attention probability from each token of the second copy to the token"
    " after the same token in the first, mean over tokens and prompts",
    _run,
    reads=("repeated",),
)

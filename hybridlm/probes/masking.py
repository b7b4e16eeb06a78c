"""Answers of a model from which attention heads are removed."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybridlm.models.params import Model, Params
from hybridlm.probes.answers import answers
from hybridlm.probes.layers import all_heads, head_counts
from hybridlm.probes.probe import Probe, Subject
from hybridlm.probes.prompts import Prompts
from hybridlm.probes.table import Head, Table


@dataclasses.dataclass(frozen=True)
class Masked:
    """The answers without some heads; see `Answers` for the figures.

    Attributes:
      which: the removed heads: "none", "retrieval" or "random".
      draw: number of the random draw; None for "none" and "retrieval".
      heads: the removed heads as "layer.head".
    """

    which: str
    draw: int | None
    heads: tuple[str, ...]
    nll: float
    accuracy: float
    exact: float
    other_nll: float


def mask_heads(model: Model, params: Params, heads: Collection[Head]) -> Params:
    """The parameters of the model without these heads.

    The heads' rows of the output projection are set to 0, so that the heads add nothing to the
    residual stream; nothing else changes. (A norm between heads and projection, as in NHA, still
    counts the heads in its statistics.)

    Raises:
      ValueError: if the model has no such head.
    """
    counts = head_counts(model)
    scales = [np.ones(count, np.float32) for count in counts]
    for layer, head in heads:
        if not (0 <= layer < len(counts) and 0 <= head < counts[layer]):
            raise ValueError(f"there is no attention head {Head(layer, head)} in this model")
        scales[layer][head] = 0
    module = model.bind(params)
    module.scale_heads([jnp.asarray(scale) for scale in scales])
    return nnx.to_pure_dict(nnx.state(module))


def head_masking(
    model: Model,
    params: Params,
    prompts: Prompts,
    retrieval: Sequence[Head],
    *,
    draws: int = 5,
    layers: Collection[int] | None = None,
    seed: int = 0,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> Table[Masked]:
    """Answers without the retrieval heads and without as many random heads (arXiv 2404.15574, 4.1).

    Args:
      retrieval: the k `top_heads` of the model.
      draws: number of random sets of k heads, each drawn without replacement from the heads not in
        `retrieval`. If fewer than k such heads exist, no set is drawn.
      layers: the layers of the random heads; None for all. Where the retrieval heads are all in some
        layers, heads of others say less: a window's cannot retrieve from beyond it.
    """
    retrieval = tuple(retrieval)
    among = [head for head in all_heads(model) if layers is None or head.layer in layers]
    others = [head for head in among if head not in retrieval]
    rng = np.random.default_rng([seed, len(retrieval)])
    sets: list[tuple[str, int | None, tuple[Head, ...]]] = [("none", None, ())]
    if retrieval:
        sets.append(("retrieval", None, retrieval))
        for draw in range(draws if len(others) >= len(retrieval) else 0):
            picked = rng.choice(len(others), size=len(retrieval), replace=False)
            sets.append(("random", draw, tuple(others[i] for i in sorted(picked.tolist()))))
    entries = []
    for which, draw, heads in sets:
        masked = mask_heads(model, params, heads) if heads else params
        found = answers(model, masked, prompts, batch=batch, dtype=dtype)
        entries.append(Masked(which, draw, tuple(map(str, heads)), *found))
    return Table(
        "head_masking",
        "answers' nats and accuracy without the retrieval heads, and without as many random heads",
        "arXiv 2404.15574",
        tuple(entries),
    )


def _run(subject: Subject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    settings = subject.settings
    yield head_masking(
        subject.model,
        params,
        subject.prompts,
        subject.heads,
        draws=settings.draws,
        seed=settings.seed,
        **subject.options,
    )


HEAD_MASKING = Probe(
    "head_masking",
    "answers without the retrieval heads",
    "the answers' nats and accuracy without the `--top_k` retrieval heads, and without as many random"
    " heads, drawn `--draws` times (arXiv 2404.15574, section 4)",
    _run,
)

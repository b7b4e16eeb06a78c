"""How strongly an input d tokens back influences the output."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.models.mixers.rows import take
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.probes.probe import Probe, Subject
from hybridlm.probes.prompts import Batch, Prompts
from hybridlm.probes.table import Table
from kernels_pallas import segments

LAST_POSITIONS = 20  # the paper's N_tau


@dataclasses.dataclass(frozen=True)
class Influence:
    """Mean influence of inputs at distances `first` to `last` before the last token.

    Attributes:
      influence: G, averaged over these distances and over the sequences that are long enough.
      inputs: number of gradients in this mean.
    """

    first: int
    last: int
    influence: float
    inputs: int


def gradient_influence(
    model: Model,
    params: Params,
    prompts: Prompts,
    *,
    batch: int = 4,
    dtype: jnp.dtype = jnp.float32,
) -> Table[Influence]:
    """G(d) = E || ds / de_{T-d} ||, for d = 0, 1, 2-3, 4-7, ... (arXiv 2606.15378, its code).

    s is the sum of the logits over the vocabulary, averaged over the last 20 positions; e are the
    embeddings that enter the first layer; T is the last token of a sequence. Only tokens of the
    document of T count, as inputs and as last positions.
    """
    norms_NT, distance_NT = influence_norms(model, params, prompts, batch=batch, dtype=dtype)
    longest = int(distance_NT.max(initial=0))
    entries, first, last = [], 0, 0
    while first <= longest:
        chosen = (distance_NT >= first) & (distance_NT <= last)
        if chosen.any():
            mean, count = float(norms_NT[chosen].mean()), int(chosen.sum())
            entries.append(Influence(first, min(last, longest), mean, count))
        first, last = last + 1, 2 * last + 1
    return Table(
        "gradient_influence",
        "norm of the gradient of the summed logits of the last 20 positions with respect to the"
        " embedding d tokens before the last",
        "arXiv 2606.15378",
        tuple(entries),
    )


def influence_norms(
    model: Model,
    params: Params,
    prompts: Prompts,
    *,
    batch: int = 4,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """(norm of ds / de, distance d to the last token), each (N, T).

    d is -1 for tokens that are not in the last token's document.
    """
    parts = [jax.device_get(_norms(model, dtype)(params, part)) for part in prompts.batches(batch)]
    norms, distance = (np.concatenate(xs)[: len(prompts)] for xs in zip(*parts))
    return norms, distance


@per_model
def _norms(model: Model, dtype: jnp.dtype):

    @jax.jit
    def run(params: Params, batch: Batch):
        module = model.bind(params)
        ids_BT = batch.segment_ids_BT
        context = batch.context
        index_1T = jnp.arange(ids_BT.shape[1])[None]
        end_B1 = jnp.max(jnp.where(ids_BT != 0, index_1T, -1), axis=1, keepdims=True)
        document_BT = segments.document_number(ids_BT)
        own_BT = (document_BT == take(document_BT, end_B1)) & (ids_BT != 0)
        distance_BT = jnp.where(own_BT, end_B1 - index_1T, -1)

        rows_BQ = end_B1 - jnp.arange(LAST_POSITIONS)[None]
        counted_BQ = (rows_BQ >= 0) & (take(distance_BT, rows_BQ) >= 0)
        count_B1 = jnp.maximum(jnp.sum(counted_BQ, axis=1, keepdims=True), 1)
        weight_BQ1 = (counted_BQ / count_B1)[..., None]

        def score(x_BTD: jax.Array) -> jax.Array:
            """The sum over sequences, which are independent of each other."""
            hidden_BTD = module.hidden_from(x_BTD, context)
            return jnp.sum(module.logits(take(hidden_BTD, rows_BQ)) * weight_BQ1)

        gradient_BTD = jax.grad(score)(module.embed(batch.tokens_BT, dtype))
        accumulator = jnp.promote_types(dtype, jnp.float32)
        return jnp.linalg.norm(gradient_BTD.astype(accumulator), axis=-1), distance_BT

    return run


def _run(subject: Subject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    yield gradient_influence(subject.model, params, subject.texts, **subject.options)


GRADIENT_INFLUENCE = Probe(
    "gradient_influence",
    "how strongly an input d tokens back influences the output",
    "norm of the gradient of s with respect to the embedding d tokens before the last, s being the"
    " logits summed over the vocabulary and averaged over the last 20 positions; on held-out text,"
    " mean over d = 0, 1, 2–3, 4–7, … (arXiv 2606.15378)",
    _run,
    reads=("texts",),
)

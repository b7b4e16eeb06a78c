"""Likelihood and accuracy of given answers, with or without restricted layers."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.models.loss import loss_settings, token_nll
from hybridlm.models.mixers.capabilities import narrowed
from hybridlm.models.mixers.last_tokens import LastTokens
from hybridlm.models.mixers.rows import take
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.probes.prompts import Batch, Prompts


class Restriction(NamedTuple):
    """A bound on a layer's receptive field.

    Attributes:
      window: tokens that the layer may see, the query's own included.
      how: "window" narrows the mixer's own window; "context" runs the mixer on the last tokens.
    """

    layer: int
    window: int
    how: str


class Answers(NamedTuple):
    """How well a model predicts the answers of prompts, with teacher forcing.

    Attributes:
      nll: nats per answer token.
      accuracy: share of answer tokens that are the likeliest token.
      exact: share of prompts whose answer tokens are all the likeliest.
      other_nll: nats per token over all other tokens: the effect of the intervention elsewhere.
    """

    nll: float
    accuracy: float
    exact: float
    other_nll: float


def answers(
    model: Model,
    params: Params,
    prompts: Prompts,
    restrictions: tuple[Restriction, ...] = (),
    *,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> Answers:
    """Runs the prompts with the receptive fields that `restrictions` bound."""
    program = _program(model, dtype, tuple(sorted(restrictions)))
    parts = [jax.device_get(program(params, part)) for part in prompts.batches(batch)]
    nll, right, asked, other, others = (np.concatenate(xs)[: len(prompts)] for xs in zip(*parts))
    tokens, any_asked = max(int(asked.sum()), 1), asked.any(axis=1)
    every = (right | ~asked).all(axis=1)[any_asked]
    mean_nll = float(nll[asked].sum() / tokens)
    # The likeliest of logits that are not finite is no answer.
    known = 1.0 if math.isfinite(mean_nll) else math.nan
    return Answers(
        mean_nll,
        known * float((right & asked).sum() / tokens),
        known * (float(every.mean()) if len(every) else 0.0),
        float(other.sum() / max(int(others.sum()), 1)),
    )


@per_model
def _program(model: Model, dtype: jnp.dtype, restrictions: tuple[Restriction, ...]):
    by_layer = {r.layer: r for r in restrictions}

    @jax.jit
    def run(params: Params, batch: Batch):
        module = model.bind(params)
        ids_BT = batch.segment_ids_BT
        context = batch.context
        x_BTD = module.embed(batch.tokens_BT, dtype)
        if not by_layer:
            hidden_BTD = module.hidden_from(x_BTD, context)
        else:

            def apply(block: Any, index: int, x_BTD: jax.Array, context: Any, *_: Any) -> Any:
                if index in by_layer:
                    block.mixer = _restricted(block.mixer, by_layer[index])
                return block(x_BTD, context), None, None

            x_BTD, _, _ = module.apply_layers(apply, x_BTD, context, unroll=True)
            hidden_BTD = module.final_norm(x_BTD)

        rows_BQ = batch.rows_BQ
        asked_BQ = rows_BQ >= 0
        targets_BT = jnp.roll(batch.tokens_BT, -1, axis=1)
        target_BQ = take(targets_BT, rows_BQ)
        logits_BQV = module.logits(take(hidden_BTD, rows_BQ))
        picked_BQ1 = jnp.take_along_axis(logits_BQV, target_BQ[..., None], axis=-1)
        nll_BQ = jax.nn.logsumexp(logits_BQV, axis=-1) - picked_BQ1[..., 0]
        right_BQ = jnp.argmax(logits_BQV, axis=-1) == target_BQ

        nll_BT = token_nll(
            hidden_BTD, module.head_kernel(), targets_BT, loss_settings(model.config)
        )
        # Rows whose target lies in the same document, without the rows of the answer.
        predicts_BT = (ids_BT == jnp.roll(ids_BT, -1, axis=1)) & (ids_BT != 0)
        predicts_BT = predicts_BT.at[:, -1].set(False)
        is_row_BT = functools.reduce(
            jnp.logical_or,
            (
                jnp.arange(ids_BT.shape[1])[None] == rows_BQ[:, q, None]
                for q in range(rows_BQ.shape[1])
            ),
        )
        other_BT = predicts_BT & ~is_row_BT
        sums = jnp.sum(jnp.where(other_BT, nll_BT, 0), axis=1), jnp.sum(other_BT, axis=1)
        return nll_BQ, right_BQ, asked_BQ, *sums

    return run


def _restricted(mixer, restriction: Restriction):
    if restriction.how == "window":
        return narrowed(mixer, restriction.window)
    return LastTokens(mixer, restriction.window)

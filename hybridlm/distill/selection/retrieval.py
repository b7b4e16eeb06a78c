"""Batches of synthetic retrieval: sequences of which the answers alone are predicted."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.data import Tokenizer
from hybridlm.evals.mqar import mqar
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.mixers.rows import take
from hybridlm.models.params import Model, Params
from hybridlm.probes.needles import needle_prompts
from hybridlm.probes.prompts import Prompts

Batch = dict[str, np.ndarray]
Task = Literal["needle", "mqar"]


def retrieval_batch(
    task: Task,
    tokenizer: Tokenizer,
    vocab_size: int,
    length: int,
    batch: int,
    *,
    seed: int,
    pairs: int | None = None,
) -> Batch:
    """A batch that depends on its arguments alone.

    Returns:
      `tokens`, `segment_ids`, `positions` (B, T), and `rows` (B, Q): indices of the tokens that
      predict an answer's tokens, -1 where an answer is shorter. The target of row r is `targets` (B,
      T) at r.

    Raises:
      UserError: if the task does not fit the length, or the tokenizer takes no text.
    """
    if task == "mqar":
        made = mqar(length, pairs or max(length // 16, 1), batch, seed=seed, vocab_size=vocab_size)
        rows = np.stack([np.flatnonzero(weights) for weights in made.loss_weights])
        return {
            "tokens": made.tokens,
            "segment_ids": made.segment_ids,
            "positions": made.positions,
            "targets": made.targets,
            "rows": rows.astype(np.int32),
        }
    prompts, _ = needle_prompts(tokenizer, length, batch, seed)
    return of_prompts(prompts, length)


def of_prompts(prompts: Prompts, length: int) -> Batch:
    """Prompts as such a batch, padded to `length`, so that all batches have one shape."""
    missing = ((0, 0), (0, length - prompts.tokens_NT.shape[1]))
    tokens = np.pad(prompts.tokens_NT, missing)
    return {
        "tokens": tokens,
        "segment_ids": np.pad(prompts.segment_ids_NT, missing),
        "positions": np.pad(prompts.positions_NT, missing),
        "targets": np.roll(tokens, -1, axis=1),
        "rows": prompts.rows_NQ,
    }


def with_rows(batch: Batch, count: int) -> Batch:
    """The batch with `count` rows of answers, -1 in the new ones."""
    missing = count - batch["rows"].shape[1]
    return batch | {"rows": np.pad(batch["rows"], ((0, 0), (0, missing)), constant_values=-1)}


def answer_nll(
    model: Model, params: Params, batch: dict[str, Any], dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """(nll_B, tokens_B): nats of each sequence's answers, and their number of tokens; float32."""
    module = model.bind(params)
    context = SequenceContext(batch["segment_ids"], batch["positions"])
    hidden_BTD = module.hidden(batch["tokens"], context, dtype=dtype)
    rows_BQ = batch["rows"]
    logits_BQV = module.logits(take(hidden_BTD, rows_BQ))
    target_BQ1 = take(batch["targets"], rows_BQ)[..., None]
    picked_BQ = jnp.take_along_axis(logits_BQV, target_BQ1, axis=-1)[..., 0]
    nll_BQ = jax.nn.logsumexp(logits_BQV, axis=-1) - picked_BQ
    asked_BQ = rows_BQ >= 0
    return jnp.sum(jnp.where(asked_BQ, nll_BQ, 0), axis=1), jnp.sum(asked_BQ, axis=1)

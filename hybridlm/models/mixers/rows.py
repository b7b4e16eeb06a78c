"""Attention probabilities of a few queries, for probes, and the keys that these queries see.

A mixer's forward pass never materialises attention probabilities. These functions do, for the
queries asked for alone, so that a probe costs Q x T and never T x T.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybridlm.models.norms import at_least_float32
from kernels_pallas import segments

_MASKED = -1e30


class AttentionRows(NamedTuple):
    """The attention of each head's Q queries.

    Attributes:
      probs_BHQT: in at least float32, of the mixer's own softmax. They sum to 1 minus the
        share of sinks and of NHA's slots, which are not tokens, and to 0 for a query without keys.
      visible_BHQT: bool, the keys that the query may attend to.
    """

    probs_BHQT: jax.Array
    visible_BHQT: jax.Array


def concatenated(parts: Sequence[AttentionRows]) -> AttentionRows:
    """The heads of several mixers side by side, in the order given."""
    return AttentionRows(*(jnp.concatenate(xs, axis=1) for xs in zip(*parts, strict=True)))


def take(x_BT: jax.Array, rows_BQ: jax.Array) -> jax.Array:
    """x (B, T, ...) at the rows, (B, Q, ...); a row of -1 gives the first one's."""
    return jax.vmap(lambda x_T, rows_Q: x_T[rows_Q])(x_BT, jnp.maximum(rows_BQ, 0))


def visible_keys(
    segment_ids_BT: jax.Array, rows_BQ: jax.Array, window: int | jax.Array | None = None
) -> jax.Array:
    """bool (B, 1, Q, T): keys of the query's document up to itself, the last `window` at most.

    A query that is padding, or -1, sees none.
    """
    document_BT = segments.document_number(segment_ids_BT)
    key_11T = jnp.arange(segment_ids_BT.shape[1])[None, None]
    row_BQ1 = rows_BQ[:, :, None]
    seen_BQT = (key_11T <= row_BQ1) & (
        document_BT[:, None] == take(document_BT, rows_BQ)[..., None]
    )
    if window is not None:
        seen_BQT &= row_BQ1 - key_11T < window
    return (seen_BQT & (segment_ids_BT != 0)[:, None])[:, None]


def probabilities(
    q_BQHK: jax.Array,
    k_BTGK: jax.Array,
    visible_BHQT: jax.Array,
    *,
    scale: float,
    sinks_H: jax.Array | None = None,
    soft_cap: float | None = None,
    bias_BHQT: jax.Array | None = None,
) -> AttentionRows:
    """softmax(cap(scale q k^T)) over the visible keys and the sink, in at least float32.

    Args:
      q_BQHK: the rows' queries; head h reads key head h // (H // G) of k_BTGK.
      visible_BHQT: bool; its head dimension may be 1, for all heads alike.
      scale, sinks_H, soft_cap: as in `kernels_pallas.attention`.
      bias_BHQT: added to the logits after the cap; None is 0.
    """
    options = dict(scale=scale, soft_cap=soft_cap, bias_BHQT=bias_BHQT)
    scores_BHQT = logits(q_BQHK, k_BTGK, visible_BHQT, **options)
    return softmax(scores_BHQT, visible_BHQT, sinks_H)


def logits(
    q_BQHK: jax.Array,
    k_BTGK: jax.Array,
    visible_BHQT: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
    bias_BHQT: jax.Array | None = None,
) -> jax.Array:
    """cap(scale q k^T) + bias, (B, H, Q, T), in at least float32; minus infinity for keys not visible."""
    k_BTHK = jnp.repeat(at_least_float32(k_BTGK), q_BQHK.shape[2] // k_BTGK.shape[2], axis=2)
    logits_BHQT = scale * jnp.einsum("bqhk,bthk->bhqt", at_least_float32(q_BQHK), k_BTHK)
    if soft_cap is not None:
        logits_BHQT = soft_cap * jnp.tanh(logits_BHQT / soft_cap)
    if bias_BHQT is not None:
        logits_BHQT += bias_BHQT
    return jnp.where(visible_BHQT, logits_BHQT, -jnp.inf)


def log_sum_exp(logits_BHQT: jax.Array, visible_BHQT: jax.Array) -> jax.Array:
    """(B, H, Q), over the visible keys; -1e30 for a query without any."""
    return jax.nn.logsumexp(jnp.where(visible_BHQT, logits_BHQT, _MASKED), axis=-1)


def softmax(
    logits_BHQT: jax.Array, visible_BHQT: jax.Array, sinks_H: jax.Array | None = None
) -> AttentionRows:
    """The softmax over the visible keys and the sink; 0 for a query without keys."""
    visible_BHQT = jnp.broadcast_to(visible_BHQT, logits_BHQT.shape)
    logits_BHQT = jnp.where(visible_BHQT, logits_BHQT, _MASKED)
    top_BHQ1 = jnp.max(logits_BHQT, axis=-1, keepdims=True)
    if sinks_H is not None:
        sinks_BHQ1 = at_least_float32(sinks_H)[None, :, None, None]
        top_BHQ1 = jnp.maximum(top_BHQ1, sinks_BHQ1)
    weights_BHQT = jnp.where(visible_BHQT, jnp.exp(logits_BHQT - top_BHQ1), 0)
    total_BHQ1 = jnp.sum(weights_BHQT, axis=-1, keepdims=True)
    if sinks_H is not None:
        total_BHQ1 += jnp.exp(sinks_BHQ1 - top_BHQ1)
    seen_BHQ1 = jnp.any(visible_BHQT, axis=-1, keepdims=True)
    return AttentionRows(weights_BHQT / jnp.where(seen_BHQ1, total_BHQ1, 1), visible_BHQT)

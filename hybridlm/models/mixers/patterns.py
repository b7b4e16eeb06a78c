"""Attention's scores and pattern, for analyses that keep or change them.

The attention ops never hold them. Here they are computed beside the op from what it reads, and only
where they are asked for; where one is changed, the output is computed from it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybridlm.models.mixers import rows
from hybridlm.models.mixers.base import SequenceContext

SCORES, PATTERN = "hook_attn_scores", "hook_pattern"


def observed(
    context: SequenceContext,
    out_BTHV: jax.Array,
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGV: jax.Array,
    visible: Callable[[jax.Array], jax.Array],
    *,
    bias: Callable[[jax.Array], jax.Array | None] = lambda rows_BQ: None,
    sinks_H: jax.Array | None = None,
    **options: object,
) -> jax.Array:
    """`out`, an attention op's result for q, k and v, with hooks for its scores and its pattern.

    `hook_attn_scores` (B, H, T, T), queries before keys, are the logits, minus infinity where a query
    does not see a key; `hook_pattern` (B, H, T, T) is their softmax.

    Args:
      visible: (rows_BQ) -> bool (B, H or 1, Q, T), the keys that the queries at `rows` see.
      bias: (rows_BQ) -> what is added to the logits of the queries at `rows` (B, H, Q, T), or None.
      sinks_H, options: as in `rows.probabilities`.
    """
    found = scores(context, q_BTHK, k_BTGK, visible, bias=bias, **options)
    return attended(context, out_BTHV, v_BTGV, found, sinks_H=sinks_H)


class Scores(NamedTuple):
    """The logits, as edited, and the keys that each query sees: `hook_attn_scores`."""

    scores_BHTT: jax.Array
    visible_BHTT: jax.Array

    @property
    def lse_BTH(self) -> jax.Array:
        """The log of the softmax's denominator."""
        return jnp.moveaxis(rows.log_sum_exp(*self), 1, 2)


def scores(
    context: SequenceContext,
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    visible: Callable[[jax.Array], jax.Array],
    *,
    bias: Callable[[jax.Array], jax.Array | None] = lambda rows_BQ: None,
    **options: object,
) -> Scores | None:
    """The scores with their hook, where they or the pattern are asked for; as in `observed`."""
    if not context.asks(SCORES, PATTERN):
        return None
    batch, time, *_ = q_BTHK.shape
    every_BQ = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32)[None], (batch, time))
    visible_BHTT = visible(every_BQ)
    bias_BHTT = bias(every_BQ)
    scores_BHTT = rows.logits(q_BTHK, k_BTGK, visible_BHTT, bias_BHQT=bias_BHTT, **options)
    return Scores(context.hook(SCORES, scores_BHTT), visible_BHTT)


def attended(
    context: SequenceContext,
    out_BTHV: jax.Array,
    v_BTGV: jax.Array,
    found: Scores | None,
    *,
    share_BTH: jax.Array | None = None,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """`out` with the hook of its pattern, the softmax of the scores; as in `observed`.

    Args:
      share_BTH: of each softmax, what is on tokens; `out` and the pattern are multiplied by it. None
        for a softmax over tokens alone.
    """
    if found is None:
        return out_BTHV
    pattern_BHTT, _ = rows.softmax(*found, sinks_H)
    if share_BTH is not None:
        pattern_BHTT = pattern_BHTT * jnp.moveaxis(share_BTH, 2, 1)[..., None]
    pattern_BHTT = context.hook(PATTERN, pattern_BHTT)
    if not context.edits(SCORES, PATTERN):
        return out_BTHV
    v_BTHV = jnp.repeat(v_BTGV, out_BTHV.shape[2] // v_BTGV.shape[2], axis=2)
    changed_BTHV = jnp.einsum("bhts,bshv->bthv", pattern_BHTT, v_BTHV.astype(pattern_BHTT.dtype))
    return changed_BTHV.astype(out_BTHV.dtype)

"""The sums of log forget gates that attention adds to its logits (arXiv 2503.02130, sec. 3).

Query i sees key j with the logit plus the sum of the log-gates of the tokens after j up to i, the
difference c_i - c_j of sums that begin anew with each document. A float32 sum over a long document has
few digits left for the difference of two neighbours, so each sum is a pair (high, low) of floats that
together have the digits of both: high_i - high_j is exact for neighbours, and low_i - low_j adds what
their roundings lost.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas import segments

#: A lower log-gate counts as this one. A gate of 0 so has no infinite sums, whose differences are NaN;
#: what it forgets has a weight of 0 unless its logit is larger by as much.
LOWEST = -1e4


class Cumulative(NamedTuple):
    """Sums of log-gates from each document's first token to the own one, high + low."""

    high: Float[Array, "B S H"]
    low: Float[Array, "B S H"]

    def last(self, tokens: int) -> "Cumulative":
        """The sums of the last `tokens` tokens."""
        return Cumulative(*(x[:, x.shape[1] - tokens :] for x in self))


def bounded(log_forget_BSH: Float[Array, "B S H"]) -> Float[Array, "B S H"]:
    """The log-gates, at least `LOWEST`; NaN stays NaN."""
    return jnp.where(log_forget_BSH < LOWEST, LOWEST, log_forget_BSH)


def cumulative(log_forget_BSH: Float[Array, "B S H"], ids_BS: Int[Array, "B S"]) -> Cumulative:
    """The sums that all forms of attention read; finite log-gates.

    Cotangents reach the gates through `high`; one of `low` is ignored, because `low` is its rounding.
    """
    starts_BS = segments.document_starts(jax.lax.optimization_barrier(ids_BS))
    return Cumulative(*_sums(log_forget_BSH, starts_BS))


@jax.custom_vjp
def _sums(log_forget_BSH, starts_BS):
    zeros = jnp.zeros_like(log_forget_BSH)
    begins = jnp.broadcast_to(starts_BS[..., None], zeros.shape)
    _, high, low = jax.lax.associative_scan(_join, (begins, log_forget_BSH, zeros), axis=1)
    return high, low


def _join(left, right):
    """The sum of two neighbouring runs; a run in which a document begins ignores what is before."""
    (begun, high, low), (begins, more_high, more_low) = left, right
    new_high, new_low = added(high, low, more_high, more_low)
    return (
        begun | begins,
        jnp.where(begins, more_high, new_high),
        jnp.where(begins, more_low, new_low),
    )


def added(high, low, more_high, more_low) -> Cumulative:
    """The sum of two pairs."""
    total = high + more_high
    # What the rounding of the sum lost (Knuth's two-sum).
    part = total - high
    lost = (high - (total - part)) + (more_high - part)
    lost = lost + (low + more_low)
    new_high = total + lost
    return Cumulative(new_high, lost - (new_high - total))


def _sums_forward(log_forget_BSH, starts_BS):
    return _sums(log_forget_BSH, starts_BS), starts_BS


def _sums_backward(starts_BS, cotangents):
    """The gradient of a gate: the sum of cotangents from its token to the document's end.

    0 at a document's first token, whose gate is in every sum of the document and in no difference.
    """
    dhigh_BSH, _ = cotangents
    begins_BS1 = starts_BS[..., None]
    ends_BS1 = jnp.concatenate([begins_BS1[:, 1:], jnp.ones_like(begins_BS1[:, :1])], axis=1)
    dgates_BSH = document_sums(dhigh_BSH, ends_BS1, reverse=True)
    return jnp.where(begins_BS1, 0, dgates_BSH), None


_sums.defvjp(_sums_forward, _sums_backward)


def document_sums(
    x_BSH: Float[Array, "B S H"], begins_BS1: Bool[Array, "B S 1"], reverse: bool = False
) -> Float[Array, "B S H"]:
    """Cumulative sums that begin anew where `begins`; with `reverse` they run backwards in time."""

    def join(left, right):
        (begun, total), (begins, more) = left, right
        return begun | begins, jnp.where(begins, more, total + more)

    begins = jnp.broadcast_to(begins_BS1, x_BSH.shape)
    return jax.lax.associative_scan(join, (begins, x_BSH), reverse=reverse, axis=1)[1]


def after_each_token(
    log_forget_BSH: Float[Array, "B S H"], seen_BS: Bool[Array, "B S"]
) -> Float[Array, "B S H"]:
    """The sum of the log-gates after each token up to the last one, which a new query adds to the
    logits of the tokens that it sees; `seen_BS` are these, contiguous up to the last."""
    gates_BSH = jnp.where(seen_BS[..., None], bounded(log_forget_BSH), 0)
    after_BSH = jnp.pad(gates_BSH[:, 1:], ((0, 0), (0, 1), (0, 0)))
    return jax.lax.cumsum(after_BSH, axis=1, reverse=True)


def between_pairs(
    log_forget_BSH: Float[Array, "B S H"], rows_BQ: Int[Array, "B Q"]
) -> Float[Array, "B H Q S"]:
    """For queries at the indices `rows_BQ`, the sum of the log-gates after each key up to the query.

    Sums nothing twice and subtracts nothing, at the cost of an array of all pairs; what it has for keys
    of other documents, or after the query, means nothing.
    """
    key_11S = jnp.arange(log_forget_BSH.shape[1])[None, None]
    gates_BH1S = jnp.moveaxis(log_forget_BSH, 1, 2)[:, :, None]
    up_to_BHQS = jnp.where((key_11S <= rows_BQ[..., None])[:, None], gates_BH1S, 0)
    after_BHQS = jnp.pad(up_to_BHQS[..., 1:], ((0, 0), (0, 0), (0, 0), (0, 1)))
    return jax.lax.cumsum(after_BHQS, axis=3, reverse=True)

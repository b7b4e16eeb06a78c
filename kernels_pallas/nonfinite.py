"""Keeps NaN and infinity within the document that they come from.

A mask of zeros does not: 0 times NaN is NaN, so in a product over the tokens of a block, forward or
backward, one document that has overflowed would spoil every other document, and the padding, beside it.
So an op replaces what is not finite by 0 before it starts, and sets the outputs of the document from
that token on to NaN: nothing is hidden, and no gradient passes there.

Cotangents are treated alike: one that is not finite (another layer or branch has overflowed at that token)
becomes 0 for the op, and the gradient of the op's first input becomes NaN at its token.

The TPU kernels of `gated_linear` and `delta_rule` replace such numbers themselves, cotangents too, and report
the tokens (`kernels_pallas/tpu_nonfinite.py`). Those of attention have their own way
(`kernels_pallas/attention/tpu_nonfinite.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas import segments

NO_KEYS = -1e30  # the log-sum-exp of a token that sees no keys


class Contained(NamedTuple):
    """The inputs of an op without NaN and infinity.

    Attributes:
      inputs: as given, finite.
      state: as given, finite, and 0 where the first token does not continue its document.
      spoilt_BT: True at tokens whose document held NaN or infinity up to them; never at padding.
      padding_BT: True at padding.
      flag_BT: zeros; a cotangent of NaN here makes the first input's gradient NaN at the token.
      by_kernel: the inputs are as given: the kernel replaces NaN and infinity, also in the
        cotangent of its output. `found` then takes the tokens in which there was any, and the
        kernel's flag.
    """

    inputs: tuple
    state: Any
    spoilt_BT: Bool[Array, "B T"]
    padding_BT: Bool[Array, "B T"]
    flag_BT: Float[Array, "B T"]
    by_kernel: bool = False

    def found(self, ids_BT: Array, bad_BT: Bool[Array, "B T"], flag_BT: Array) -> "Contained":
        """With the tokens in which a kernel found NaN or infinity; padding is not counted."""
        bad_BT = (bad_BT & ~self.padding_BT).at[:, 0].max(self.spoilt_BT[:, 0])
        spoilt_BT = spoilt(ids_BT, bad_BT, self.state.segment_ids_B)
        return self._replace(spoilt_BT=spoilt_BT, flag_BT=flag_BT)

    def mark(self, x_BT: Array, empty: float = 0.0) -> Array:
        """An output (B, T, ...) with NaN at spoilt tokens and `empty` at padding.

        No cotangent of either passes, be it NaN.
        """
        if not self.by_kernel:
            x_BT = _with_finite_cotangent(x_BT, self.flag_BT)
        set_BT = jnp.where(self.spoilt_BT, jnp.nan, empty).astype(x_BT.dtype)
        return jnp.where(_wide(self.spoilt_BT | self.padding_BT, x_BT), _wide(set_BT, x_BT), x_BT)

    def mark_state(self, state: Any) -> Any:
        """A last state with NaN in its floating fields (B, ...) where the last token is spoilt."""
        last_B, flag_B = self.spoilt_BT[:, -1], self.flag_BT[:, -1]

        def one(x: Array) -> Array:
            return jnp.where(_wide(last_B, x), jnp.nan, _with_finite_cotangent(x, flag_B))

        return type(state)(*(one(x) if _is_float(x) else x for x in state))


def contain(
    ids_BT: Int[Array, "B T"],
    inputs: tuple,
    *,
    logs: tuple = (),
    state: Any = None,
    by_kernel: bool = False,
) -> Contained:
    """Replaces NaN and infinity, and marks the tokens that they spoil.

    Arguments:
      ids_BT: int32 segment ids, 0 = padding.
      inputs: arrays (B, T, ...), or None.
      logs: further inputs, logarithms of decays, in which minus infinity is a decay of 0.
      state: a recurrent state before the first token, with arrays (B, ...) and the field
        segment_ids_B. None is no state, and one of zeros that the op makes itself: XLA would evaluate
        the check of zeros while it compiles (40 s for 64 rows of 16 heads of 128 x 128).
      by_kernel: leaves the inputs to the kernel, and marks only what the state spoils.

    Returns the inputs and then the logs, in `Contained.inputs`.
    """
    if by_kernel:
        found, found_logs, bad_BT = list(inputs), logs, jnp.zeros(ids_BT.shape, bool)
    else:
        found, bad_BT = _replace(inputs, ids_BT)
        found_logs, bad_logs_BT = _replace(logs, ids_BT, is_log=True)
        bad_BT |= bad_logs_BT
    before_B = None
    if state is not None:
        state, bad_B = contain_state(state, ids_BT)
        bad_BT, before_B = bad_BT.at[:, 0].max(bad_B), state.segment_ids_B
    spoilt_BT = spoilt(ids_BT, bad_BT, before_B)
    flag_BT = jnp.zeros(ids_BT.shape, found[0].dtype)
    if not by_kernel:
        found[0], flag_BT = _with_flag(found[0])
    inputs = *found, *found_logs
    return Contained(inputs, state, spoilt_BT, ids_BT == 0, flag_BT, by_kernel)


def contain_state(state: Any, ids_BT: Int[Array, "B T"]) -> tuple[Any, Bool[Array, "B"]]:
    """A recurrent state as in `Contained.state`, and the rows that were not finite."""
    bad_B = jnp.zeros(ids_BT.shape[:1], bool)
    # The barrier keeps XLA from evaluating the check of a program's first, empty state.
    state = type(state)(*jax.lax.optimization_barrier(tuple(state)))
    fields = []
    for x in state:
        if _is_float(x):
            x = segments.of_first_document(x, state.segment_ids_B, ids_BT)
            bad = ~jnp.isfinite(x)
            bad_B |= jnp.any(bad, axis=tuple(range(1, x.ndim)))
            x = jnp.where(bad, 0, x)
        fields.append(x)
    return type(state)(*fields), bad_B


def _replace(inputs: tuple, ids_BT: Array, is_log: bool = False) -> tuple[list, Array]:
    """The inputs with 0 for what is not finite, and the tokens, padding apart, where that was."""
    bad_BT, found = jnp.zeros(ids_BT.shape, bool), []
    for x in inputs:
        if x is not None:
            bad = jnp.isnan(x) | (x == jnp.inf) if is_log else ~jnp.isfinite(x)
            bad_BT |= jnp.any(bad, axis=tuple(range(2, x.ndim)))
            x = jnp.where(bad, 0, x)
        found.append(x)
    return found, bad_BT & (ids_BT != 0)


def contain_attention(
    q_BT: Array,
    k_BS: Array,
    v_BS: Array,
    ids_BS: Array,
    window: int | Array | None = None,
    log_gate_BS: Array | None = None,
) -> Contained:
    """`contain` for attention of T queries to S >= T keys, whose last T tokens are the queries'.

    A query that is not finite spoils its own output only; a key, value or log-gate spoils the queries of
    its document from its own token on, as far as the window reaches. A log-gate of minus infinity is a
    gate of 0. The inputs are q, k, v and, if given, the log-gates.
    """
    time = q_BT.shape[1]
    (k_BS, v_BS), bad_BS = _replace((k_BS, v_BS), ids_BS)
    gates, bad_gate_BS = _replace(
        () if log_gate_BS is None else (log_gate_BS,), ids_BS, is_log=True
    )
    bad_BS |= bad_gate_BS
    (q_BT,), own_BT = _replace((q_BT,), ids_BS[:, -time:])
    q_BT, flag_BT = _with_flag(q_BT)
    spoilt_BT = spoilt(ids_BS, bad_BS, reach=window)[:, -time:] | own_BT
    return Contained((q_BT, k_BS, v_BS, *gates), None, spoilt_BT, ids_BS[:, -time:] == 0, flag_BT)


def spoilt(
    ids_BT: Int[Array, "B T"],
    bad_BT: Bool[Array, "B T"],
    before_B: Int[Array, "B"] | None = None,
    reach: int | Array | None = None,
) -> Bool[Array, "B T"]:
    """True from a document's first bad token on; never at padding.

    Arguments:
      bad_BT: False at padding.
      before_B: the segment id of the token before the first one.
      reach: a bad token spoils itself and the reach - 1 tokens after it; None is all of them.
    """
    # The barrier keeps the compiler from evaluating the scan of constant ids, slowly.
    ids_BT, bad_BT = jax.lax.optimization_barrier((ids_BT, bad_BT))
    index_1T = jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
    starts_BT = segments.document_starts(ids_BT, before_B)
    # One scan for both: XLA compiles a scan to a dozen kernels.
    events = jnp.stack([jnp.where(starts_BT, index_1T, 0), jnp.where(bad_BT, index_1T, -1)])
    start_BT, newest_BT = jax.lax.cummax(events, axis=2)
    if reach is not None:
        start_BT = jnp.maximum(start_BT, index_1T - (reach - 1))
    return (newest_BT >= start_BT) & (ids_BT != 0)


@jax.custom_vjp
def _with_flag(x_BT: Array) -> tuple[Array, Array]:
    """x and zeros (B, T), whose cotangent of NaN makes x's gradient NaN at its token."""
    return x_BT, jnp.zeros(x_BT.shape[:2], x_BT.dtype)


def _set_by_flag(_, cotangents: tuple[Array, Array]) -> tuple[Array]:
    dx_BT, dflag_BT = cotangents
    return (jnp.where(_wide(jnp.isnan(dflag_BT), dx_BT), jnp.nan, dx_BT),)


_with_flag.defvjp(lambda x_BT: (_with_flag(x_BT), None), _set_by_flag)


@jax.custom_vjp
def _with_finite_cotangent(x: Array, flag: Array) -> Array:
    """x, with 0 for what is not finite in its cotangent; the flag's cotangent is NaN there."""
    del flag
    return x


def _raise_flag(flag: Array, dx: Array) -> tuple[Array, Array]:
    bad = ~jnp.isfinite(dx)
    raised = jnp.any(bad, axis=tuple(range(flag.ndim, dx.ndim)))
    return jnp.where(bad, 0, dx), jnp.where(raised, jnp.nan, 0).astype(flag.dtype)


_with_finite_cotangent.defvjp(lambda x, flag: (x, flag), _raise_flag)


def _is_float(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _wide(mask, x: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))

"""Recurrences with time split over devices: shards exchange states, never tokens.

A shard maps its entering state by one affine map, S -> A S + B: B is the state after the shard from an
empty one, A the product of its decays (0 if a document ends in the shard). A prefix scan of logarithmic
depth composes the maps of the shards, which gives each shard its entering state, and the op runs from
there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas import delta_rule as delta_op
from kernels_pallas import dispatch, nonfinite, segments
from kernels_pallas import gated_linear as gated_op
from kernels_pallas import gated_slots as slots_op
from kernels_pallas import linear_recurrence as diagonal_op
from kernels_pallas import selective_scan as selective_op
from kernels_pallas.context.halo import entering_state, ids_before, of_last_shard
from kernels_pallas.context.nonfinite import contain
from kernels_pallas.delta_rule.inputs import unit


def linear_recurrence(
    a_BTD: Float[Array, "B T D"],
    b_BTD: Float[Array, "B T D"],
    *,
    axis: str,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: diagonal_op.RecurrenceState | None = None,
    return_state: bool = False,
    impl: str = "auto",
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], diagonal_op.RecurrenceState]:
    """`kernels_pallas.linear_recurrence.linear_recurrence` of this shard's tokens of longer rows.

    Arguments:
      a_BTD, b_BTD, segment_ids: this shard's tokens.
      axis: the mesh axis that splits time.
      initial_state: the state before the rows, the same on every shard.
      return_state: also return the state after the rows' last token, on every shard.
      impl: as in the op, which runs twice.

    Returns and raises what the op does.
    """
    return _diagonal(
        diagonal_op.linear_recurrence,
        False,
        lambda a_BTD: jnp.prod(a_BTD, axis=1),
        a_BTD,
        b_BTD,
        axis,
        segment_ids,
        initial_state,
        return_state,
        impl,
    )


def gated_recurrence(
    log_a_BTD: Float[Array, "B T D"],
    x_BTD: Float[Array, "B T D"],
    *,
    axis: str,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: diagonal_op.RecurrenceState | None = None,
    return_state: bool = False,
    impl: str = "auto",
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], diagonal_op.RecurrenceState]:
    """`kernels_pallas.linear_recurrence.gated_recurrence` of this shard's tokens of longer rows.

    Takes, returns and raises what `linear_recurrence` here does, log_a and x in place of a and b.
    """
    return _diagonal(
        diagonal_op.gated_recurrence,
        True,
        lambda log_a_BTD: jnp.exp(jnp.sum(log_a_BTD, axis=1)),
        log_a_BTD,
        x_BTD,
        axis,
        segment_ids,
        initial_state,
        return_state,
        impl,
    )


def _diagonal(
    op, is_log, product, a_BTD, b_BTD, axis, segment_ids, initial_state, return_state, impl
):
    batch, time, channels = a_BTD.shape
    dtype = dispatch.accumulator_dtype(a_BTD, b_BTD)
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    inputs, logs = ((b_BTD,), (a_BTD,)) if is_log else ((b_BTD, a_BTD), ())
    contained = contain(ids_BT, inputs, axis, logs=logs, state=initial_state)
    b_BTD, a_BTD = contained.inputs
    first = contained.state or diagonal_op.empty_state(batch, channels, dtype)
    before_B = ids_before(ids_BT, axis, first.segment_ids_B)
    # Not `empty_state`: a document that continues from the left does not start in this shard.
    nothing = diagonal_op.RecurrenceState(jnp.zeros((batch, channels), dtype), before_B)
    _, end = op(
        a_BTD, b_BTD, segment_ids=ids_BT, initial_state=nothing, return_state=True, impl=impl
    )
    decay_BD = product(jnp.where((ids_BT == 0)[:, :, None], 0, a_BTD.astype(dtype)))
    decay_BD = jnp.where(_unbroken(ids_BT, before_B)[:, None], decay_BD, 0)
    h_BD = entering_state(decay_BD, end.h_BD, first.h_BD.astype(dtype), jnp.multiply, axis)
    state = diagonal_op.RecurrenceState(h_BD, before_B)
    h_BTD, state = op(
        a_BTD, b_BTD, segment_ids=ids_BT, initial_state=state, return_state=True, impl=impl
    )
    return _result(contained, h_BTD, state, return_state, axis)


def gated_linear(
    q_BTGK: Float[Array, "B T G K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTHV: Float[Array, "B T H V"],
    log_decay: Float[Array, "*any H_or_K"],
    *,
    axis: str,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    initial_state: gated_op.GatedLinearState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H V"] | tuple[Float[Array, "B T H V"], gated_op.GatedLinearState]:
    """`kernels_pallas.gated_linear.gated_linear` of this shard's tokens of longer rows.

    Arguments:
      q_BTGK, k_BTGK, v_BTHV, segment_ids: this shard's tokens; log_decay likewise, where it has
        a time axis.
      axis: the mesh axis that splits time.
      initial_state: the state before the rows, the same on every shard.
      return_state: also return the state after the rows' last token, on every shard.
      scale, impl, precision: as in the op, which runs once, after one product k^T v.

    Returns and raises what the op does.
    """
    batch, time, heads, value_size = v_BTHV.shape
    dtype = dispatch.accumulator_dtype(q_BTGK, k_BTGK, v_BTHV, log_decay)
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    logs = () if log_decay.ndim == 1 else (log_decay,)
    contained = contain(ids_BT, (q_BTGK, k_BTGK, v_BTHV), axis, logs=logs, state=initial_state)
    q_BTGK, k_BTGK, v_BTHV, *logs = contained.inputs
    (log_decay,) = logs or (log_decay,)
    first = contained.state
    if first is None:
        first = gated_op.empty_state(batch, heads, k_BTGK.shape[3], value_size, dtype)
    before_B = ids_before(ids_BT, axis, first.segment_ids_B)

    per_token = log_decay.astype(dtype)
    if log_decay.ndim == 1:
        per_token = jnp.broadcast_to(per_token, (batch, time, heads))
    if log_decay.ndim < 4:
        per_token = per_token[..., None]
    per_token = jnp.where((ids_BT == 0)[:, :, None, None], 0, per_token)
    # Summed from the last token backwards, so that decays near the end, which matter most, are exact.
    sums_BTHK = jax.lax.cumsum(per_token, axis=1, reverse=True)
    unbroken_B111 = _unbroken(ids_BT, before_B)[:, None, None, None]
    decay_BHK1 = jnp.where(unbroken_B111, jnp.exp(sums_BTHK[:, 0])[..., None], 0)
    end_BHKV = _last_document(k_BTGK, v_BTHV, sums_BTHK, ids_BT, precision)
    s_BHKV = entering_state(decay_BHK1, end_BHKV, first.s_BHKV.astype(dtype), jnp.multiply, axis)
    o_BTHV, state = gated_op.gated_linear(
        q_BTGK,
        k_BTGK,
        v_BTHV,
        log_decay,
        segment_ids=ids_BT,
        scale=scale,
        initial_state=gated_op.GatedLinearState(s_BHKV, before_B),
        return_state=True,
        impl=impl,
        precision=precision,
    )
    return _result(contained, o_BTHV, state, return_state, axis)


def _last_document(k_BTGK, v_BTHV, sums_BTHK, ids_BT, precision):
    """S after the last token from an empty state: the sum of k v^T over the last document, each decayed
    to the end."""
    batch, time, groups, key_size = k_BTGK.shape
    heads, value_size = v_BTHV.shape[2:]
    dtype = sums_BTHK.dtype
    number_BT = segments.document_number(ids_BT)
    is_last_BT11 = ((number_BT == number_BT[:, -1:]) & (ids_BT != 0))[:, :, None, None]
    after_BTHK = jnp.concatenate([sums_BTHK[:, 1:], jnp.zeros_like(sums_BTHK[:, :1])], axis=1)
    weight_BTHK = jnp.where(is_last_BT11, jnp.exp(jnp.where(is_last_BT11, after_BTHK, 0)), 0)
    shape = (batch, time, groups, heads // groups)
    k_BTGRK = k_BTGK.astype(dtype)[:, :, :, None] * weight_BTHK.reshape(*shape, -1)
    v_BTGRV = jnp.where(is_last_BT11, v_BTHV.astype(dtype), 0).reshape(*shape, value_size)
    s_BGRKV = jnp.einsum("btgrk,btgrv->bgrkv", k_BTGRK, v_BTGRV, precision=precision)
    return s_BGRKV.reshape(batch, heads, key_size, value_size)


def delta_rule(
    q_BTGK: Float[Array, "B T G K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTHV: Float[Array, "B T H V"],
    beta_BTH: Float[Array, "B T H"] | None = None,
    log_decay: Float[Array, "B T H"] | Float[Array, "B T H K"] | None = None,
    *,
    axis: str,
    erase_BTGK: Float[Array, "B T G K"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    unit_eps: float | None = None,
    initial_state: delta_op.DeltaRuleState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision=None,
) -> Float[Array, "B T H V"] | tuple[Float[Array, "B T H V"], delta_op.DeltaRuleState]:
    """`kernels_pallas.delta_rule.delta_rule` of this shard's tokens of longer rows.

    The shard's transition, a K x K matrix per head, is computed by the op itself: it is the last state
    from the identity with values of zero. So the first of two runs has V + K value channels.

    Arguments:
      q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, segment_ids: this shard's tokens.
      axis: the mesh axis that splits time.
      initial_state: the state before the rows, the same on every shard.
      return_state: also return the state after the rows' last token, on every shard.
      scale, unit_eps, impl, precision: as in the op; transitions are multiplied in the highest precision.

    Returns and raises what the op does.
    """
    batch, time, heads, value_size = v_BTHV.shape
    key_size = k_BTGK.shape[3]
    others = [x for x in (beta_BTH, log_decay, erase_BTGK) if x is not None]
    dtype = dispatch.accumulator_dtype(q_BTGK, k_BTGK, v_BTHV, *others)
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    inputs = q_BTGK, k_BTGK, v_BTHV, beta_BTH, erase_BTGK
    contained = contain(ids_BT, inputs, axis, logs=(log_decay,), state=initial_state)
    q_BTGK, k_BTGK, v_BTHV, beta_BTH, erase_BTGK, log_decay = contained.inputs
    if unit_eps is not None:
        q_BTGK, k_BTGK = (unit(x, unit_eps) for x in (q_BTGK, k_BTGK))
    empty = delta_op.empty_state(batch, heads, key_size, value_size, dtype)
    first = contained.state or empty
    before_B = ids_before(ids_BT, axis, first.segment_ids_B)

    def run(v_BTHV, s_BHKV):
        return delta_op.delta_rule(
            q_BTGK,
            k_BTGK,
            v_BTHV,
            beta_BTH,
            log_decay,
            erase_BTGK=erase_BTGK,
            segment_ids=ids_BT,
            scale=scale,
            initial_state=delta_op.DeltaRuleState(s_BHKV, before_B),
            return_state=True,
            impl=impl,
            precision=precision,
        )

    identity_BHKK = jnp.broadcast_to(
        jnp.eye(key_size, dtype=dtype), (batch, heads) + (key_size,) * 2
    )
    wide_v = jnp.pad(v_BTHV, ((0, 0),) * 3 + ((0, key_size),))
    wide_s = jnp.pad(identity_BHKK, ((0, 0),) * 3 + ((value_size, 0),))
    end, transition = jnp.split(run(wide_v, wide_s)[1].s_BHKV, [value_size], axis=-1)
    transition = jnp.where(_unbroken(ids_BT, before_B)[:, None, None, None], transition, 0)
    s_BHKV = entering_state(transition, end, first.s_BHKV.astype(dtype), _matmul, axis)
    return _result(contained, *run(v_BTHV, s_BHKV), return_state, axis)


def gated_slots(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    log_gate_BTGM: Float[Array, "B T G M"],
    write_BTGM: Float[Array, "B T G M"] | None = None,
    *,
    axis: str,
    written_BT: Bool[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    mask_empty: bool = False,
    initial_state: slots_op.SlotState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision=None,
) -> tuple:
    """`kernels_pallas.gated_slots.gated_slots` of this shard's tokens of longer rows.

    Arguments:
      q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM, written_BT, segment_ids: this shard's
        tokens.
      axis: the mesh axis that splits time.
      initial_state: the state before the rows, the same on every shard.
      return_state: also return the state after the rows' last token, on every shard.
      scale, mask_empty, impl, precision: as in the op, which runs once, after one product
        write^T [k v].

    Returns and raises what the op does.
    """
    batch, time, groups, key_size = k_BTGK.shape
    slots, value_size = log_gate_BTGM.shape[-1], v_BTGV.shape[-1]
    dtype = dispatch.accumulator_dtype(q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM)
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    inputs = (q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM)
    contained = contain(ids_BT, inputs, axis, state=initial_state)
    q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM = contained.inputs
    first = contained.state
    if first is None:
        first = slots_op.empty_state(batch, groups, slots, key_size, value_size, dtype)
    before_B = ids_before(ids_BT, axis, first.segment_ids_B)
    starts_BT, unbroken_B = segments.document_starts(ids_BT, before_B), _unbroken(ids_BT, before_B)
    updates_BT = ids_BT != 0 if written_BT is None else written_BT & (ids_BT != 0)
    updates_BT11 = updates_BT[:, :, None, None]

    gate_BTGM = jnp.where(updates_BT11, log_gate_BTGM.astype(dtype), 0)
    strength_BTGM = -jnp.expm1(gate_BTGM) if write_BTGM is None else write_BTGM.astype(dtype)
    sums_BTGM = jax.lax.cumsum(gate_BTGM, axis=1, reverse=True)
    decay_BGM1 = jnp.where(unbroken_B[:, None, None], jnp.exp(sums_BTGM[:, 0]), 0)[..., None]
    # Keys and values in one array: their slots are written and decay in the same way.
    both_BTGF = jnp.concatenate([k_BTGK.astype(dtype), v_BTGV.astype(dtype)], axis=-1)
    strength_BTGM = jnp.where(updates_BT11, strength_BTGM, 0)
    end_BGMF = _last_document(strength_BTGM, both_BTGF, sums_BTGM, ids_BT, precision)
    first_BGMF = jnp.concatenate([first.k_slots_BGMK, first.v_slots_BGMV], axis=-1).astype(dtype)
    entered_BGMF = entering_state(decay_BGM1, end_BGMF, first_BGMF, jnp.multiply, axis)
    k_slots_BGMK, v_slots_BGMV = jnp.split(entered_BGMF, [key_size], axis=-1)

    filled_B = slots_op.filled(starts_BT, updates_BT, jnp.zeros(batch, bool))[:, -1]
    as_floats = (x.astype(jnp.float32) for x in (unbroken_B, filled_B, first.written_B))
    written_B = entering_state(*as_floats, jnp.multiply, axis) > 0
    out_BTHV, lse_BTH, state = slots_op.gated_slots(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        log_gate_BTGM,
        write_BTGM,
        written_BT=written_BT,
        segment_ids=ids_BT,
        scale=scale,
        mask_empty=mask_empty,
        impl=impl,
        precision=precision,
        initial_state=slots_op.SlotState(k_slots_BGMK, v_slots_BGMV, before_B, written_B),
        return_state=True,
    )
    out_BTHV, lse_BTH = contained.mark(out_BTHV), contained.mark(lse_BTH, nonfinite.NO_KEYS)
    if not return_state:
        return out_BTHV, lse_BTH
    return out_BTHV, lse_BTH, _of_rows(contained, state, axis)


def selective_scan(
    x_BTD: Float[Array, "B T D"],
    dt_BTD: Float[Array, "B T D"],
    a_DN: Float[Array, "D N"],
    b_BTN: Float[Array, "B T N"],
    c_BTN: Float[Array, "B T N"],
    *,
    axis: str,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: selective_op.SelectiveScanState | None = None,
    return_state: bool = False,
    impl: str = "auto",
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], selective_op.SelectiveScanState]:
    """`kernels_pallas.selective_scan.selective_scan` of this shard's tokens of longer rows.

    Arguments:
      x_BTD, dt_BTD, b_BTN, c_BTN, segment_ids: this shard's tokens.
      a_DN: the rates, the same on every shard.
      axis: the mesh axis that splits time.
      initial_state: the state before the rows, the same on every shard.
      return_state: also return the state after the rows' last token, on every shard.
      impl: as in the op, which runs twice.

    Returns and raises what the op does.
    """
    batch, time, channels = x_BTD.shape
    dtype = dispatch.accumulator_dtype(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN)
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    contained = contain(ids_BT, (x_BTD, dt_BTD, b_BTN, c_BTN), axis, state=initial_state)
    x_BTD, dt_BTD, b_BTN, c_BTN = contained.inputs
    empty = selective_op.empty_state(batch, channels, a_DN.shape[1], dtype)
    first = contained.state or empty
    before_B = ids_before(ids_BT, axis, first.segment_ids_B)

    def run(h_BDN):
        return selective_op.selective_scan(
            x_BTD,
            dt_BTD,
            a_DN,
            b_BTN,
            c_BTN,
            segment_ids=ids_BT,
            initial_state=selective_op.SelectiveScanState(h_BDN, before_B),
            return_state=True,
            impl=impl,
        )

    end = run(jnp.zeros_like(first.h_BDN, dtype))[1].h_BDN
    unbroken_B = _unbroken(ids_BT, before_B)
    # Masked first: a step at padding may be anything.
    steps_BTD = jnp.where(unbroken_B[:, None, None], dt_BTD.astype(dtype), 0)
    decay_BDN = jnp.exp(jnp.sum(steps_BTD, axis=1)[..., None] * a_DN.astype(dtype)[None])
    decay_BDN = jnp.where(unbroken_B[:, None, None], decay_BDN, 0)
    h_BDN = entering_state(decay_BDN, end, first.h_BDN.astype(dtype), jnp.multiply, axis)
    return _result(contained, *run(h_BDN), return_state, axis)


def _matmul(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _unbroken(ids_BT, before_B) -> Bool[Array, "B"]:
    """True where the document before the shard continues after it."""
    starts_BT = segments.document_starts(ids_BT, before_B)
    return ~jnp.any(starts_BT | (ids_BT == 0), axis=1)


def _result(contained, out, state, return_state: bool, axis: str):
    out = contained.mark(out)
    return (out, _of_rows(contained, state, axis)) if return_state else out


def _of_rows(contained, state, axis: str):
    """The state after the rows' last token, on every shard."""
    return jax.tree.map(lambda x: of_last_shard(x, axis), contained.mark_state(state))

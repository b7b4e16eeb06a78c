"""Attention with time split over devices: a halo for a window, a ring for full attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas import attention as op
from kernels_pallas import nonfinite, segments
from kernels_pallas.attention import forget, intervals
from kernels_pallas.attention.tpu_older import Rectangle
from kernels_pallas.context import ring
from kernels_pallas.context.halo import document_numbers, halo, of_last_shard
from kernels_pallas.context.nonfinite import contain


def attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    *,
    axis: str,
    segment_ids: Int[Array, "B T"] | None = None,
    window: int | None = None,
    scale: float | None = None,
    sinks_H: Float[Array, "H"] | None = None,
    soft_cap: float | None = None,
    log_forget_BTH: Float[Array, "B T H"] | None = None,
    initial_state: op.AttentionState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision=None,
) -> tuple:
    """`kernels_pallas.attention.attention` of this shard's tokens of longer rows.

    With a window each shard fetches the window - 1 keys before its own, from one or more shards to
    the left, and calls the op. Without one, keys and values are passed around a ring: a device
    holds those of one other shard at a time, forward and backward, and merges the attention to
    each by its log-sum-exp. Keys of later shards and of other documents are passed on unread.

    Arguments:
      q_BTHK, k_BTGK, v_BTGV, log_forget_BTH, segment_ids: this shard's tokens.
      axis: the mesh axis that splits time.
      window: as in the op, but not an array.
      initial_state: the tokens before the rows, the same on every shard; only with a window.
      return_state: also return the state after the rows' last token, on every shard; only with a
        window, because without one the state is the whole sequence.
      scale, sinks_H, soft_cap, impl, precision: as in the op; sinks_H is the same on every shard.

    Returns and raises what the op does, and ValueError for a window that is an array and a state
    without a window.
    """
    options = dict(scale=scale, soft_cap=soft_cap, impl=impl, precision=precision)
    if isinstance(window, jnp.ndarray):
        raise ValueError(
            "context.attention: a window that is an array is not supported; use an int."
        )
    batch, time = k_BTGK.shape[:2]
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    if window is None:
        if return_state or initial_state is not None:
            raise ValueError(
                "context.attention: a state needs a window; full attention supports no state."
            )
        if jax.lax.axis_size(axis) == 1:
            return op.attention(
                q_BTHK,
                k_BTGK,
                v_BTGV,
                segment_ids=segment_ids,
                sinks_H=sinks_H,
                log_forget_BTH=log_forget_BTH,
                **options,
            )
        # The queries of a shard are the heads of one token on the ring: NaN must not get there.
        queries = nonfinite.contain_attention(q_BTHK, k_BTGK, v_BTGV, ids_BT)
        logs = () if log_forget_BTH is None else (forget.bounded(log_forget_BTH),)
        keys = contain(ids_BT, (k_BTGK, v_BTGV), axis, logs=logs)
        contained = queries._replace(spoilt_BT=keys.spoilt_BT | queries.spoilt_BT)
        q_BTHK, (k_BTGK, v_BTGV, *logs) = queries.inputs[0], keys.inputs
        own = op.attention(
            q_BTHK,
            k_BTGK,
            v_BTGV,
            segment_ids=ids_BT,
            sinks_H=sinks_H,
            log_forget_BTH=logs[0] if logs else None,
            **options,
        )
        scale = k_BTGK.shape[3] ** -0.5 if scale is None else scale
        static = ring.Static(axis, scale, soft_cap, impl, precision)
        keys = k_BTGK, v_BTGV
        if not logs and op.chosen(q_BTHK, *keys, sinks_H, soft_cap, impl) == "tpu":
            rectangle = Rectangle.of(q_BTHK, *keys, scale, soft_cap, precision)
            static = static._replace(rectangle=rectangle)
        numbers_BT = document_numbers(ids_BT, axis)
        others = ring.attention_to_the_left(
            q_BTHK, k_BTGK, v_BTGV, logs[0] if logs else None, numbers_BT, static
        )
        out_BTHV, lse_BTH = intervals.merge(own, others)
        return contained.mark(out_BTHV.astype(v_BTGV.dtype)), contained.mark(
            lse_BTH, nonfinite.NO_KEYS
        )

    reachable = (jax.lax.axis_size(axis) - 1) * time
    before = op.AttentionState(None, None, None, None)
    if initial_state is not None:
        reachable, before = reachable + initial_state.k_BSGK.shape[1], initial_state
    slots = min(window - 1, reachable)
    if log_forget_BTH is None and before.log_forget_BSH is not None:
        shape = batch, time, q_BTHK.shape[2]
        log_forget_BTH = jnp.zeros(shape, before.log_forget_BSH.dtype)  # gates of 1
    tokens = op.AttentionState(k_BTGK, v_BTGV, ids_BT, log_forget_BTH)
    state = op.AttentionState(
        *(x if x is None else halo(x, slots, axis, past) for x, past in zip(tokens, before))
    )
    out_BTHV, lse_BTH, state = op.attention(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        segment_ids=segment_ids,
        window=window,
        sinks_H=sinks_H,
        log_forget_BTH=log_forget_BTH,
        initial_state=state,
        return_state=True,
        **options,
    )
    if not return_state:
        return out_BTHV, lse_BTH
    return out_BTHV, lse_BTH, jax.tree.map(lambda x: of_last_shard(x, axis), state)

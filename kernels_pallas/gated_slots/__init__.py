"""Gated slot attention in its two-pass form: softmax attention over M gated memory slots.

Gated Slot Attention (Zhang et al. 2024, arXiv:2409.07146); with attention's (out, lse) it makes
Native Hybrid Attention (Du et al. 2025, arXiv:2510.07019), whose long-term memory it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas import dispatch, mxu, nonfinite, segments
from kernels_pallas.gated_slots import chunked, hopper, reference, tpu

NEGATIVE = -1e30  # the log-sum-exp of an empty set
_FORMS = {
    "reference": reference.gated_slots,
    "chunked": chunked.gated_slots,
    "tpu": tpu.gated_slots,
    "hopper": hopper.gated_slots,
}
SUPPORT = (
    *dispatch.XLA_ONLY,
    dispatch.Backend(
        "tpu",
        "pallas",
        dict(
            platform=("tpu",),
            dtype=("bfloat16", "float32", "bfloat16 and float32"),
            key_size=range(1, 257),
            value_size=range(1, 257),
            slots=range(1, 129),
            heads_per_kv=range(1, 9),
            state=(False, True),
            accumulator=("float32",),
            precision=dispatch.ANY,
        ),
    ),
    dispatch.Backend(
        "hopper",
        "pallas",
        dict(
            platform=("gpu",),
            dtype=("bfloat16",),
            key_size=range(1, 257),
            value_size=range(1, 257),
            slots=range(1, 129),
            heads_per_kv=range(1, 5),
            state=(False, True),
            accumulator=("float32",),
            precision=("default",),
        ),
        auto=False,
    ),
)


class SlotState(NamedTuple):
    """The slots after the last token (float32 or float64), that token's segment id, and whether its
    document has written to the slots.

    A segment id of 0 marks an empty state: its slots are never used.
    """

    k_slots_BGMK: Float[Array, "B G M K"]
    v_slots_BGMV: Float[Array, "B G M V"]
    segment_ids_B: Int[Array, "B"]
    written_B: Bool[Array, "B"]


def empty_state(
    batch: int, kv_heads: int, slots: int, key_size: int, value_size: int, dtype=jnp.float32
) -> SlotState:
    """The state before any token."""
    return SlotState(
        jnp.zeros((batch, kv_heads, slots, key_size), dtype),
        jnp.zeros((batch, kv_heads, slots, value_size), dtype),
        jnp.zeros((batch,), jnp.int32),
        jnp.zeros((batch,), bool),
    )


def gated_slots(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    log_gate_BTGM: Float[Array, "B T G M"],
    write_BTGM: Float[Array, "B T G M"] | None = None,
    *,
    written_BT: Bool[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    mask_empty: bool = False,
    initial_state: SlotState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision=None,
) -> tuple:
    """softmax(scale * slots_K q) slots_V over the M slots of each token's document so far.

    Per key/value head, slots_K <- Diag(exp log_gate_t) slots_K + write_t k_t^T, slots_V likewise
    with v_t; then query t reads, its own key and value included. Query head h reads the slots of
    key/value head h // (H // G). Slots are 0 at a document's start. Padding (segment id 0) gets
    out = 0 and lse = -1e30, passes no gradient and is never written.

    Slots that nothing was written into have logit 0 and value 0 and stay in the denominator, as
    in the authors' code; with `mask_empty` they are left out: as long as a document has written
    no token, out = 0 and lse = -1e30. (From its first written token on no slot is empty, however
    small the write.)

    Arguments:
      q_BTHK, k_BTGK, v_BTGV: any floating dtype; H is a multiple of G.
      log_gate_BTGM: logarithm of the forget gate, <= 0 and finite; 0 keeps a slot exactly.
      write_BTGM: strength of the write; None is 1 - exp(log_gate).
      written_BT: bool, the tokens that update the slots; the others only read. None: all. With a
        delayed memory (keys, values and gates shifted in time) these are the tokens whose delayed
        token is in their own document.
      segment_ids: int (B, T), 0 = padding, a change = boundary; None = one document (id 1).
      scale: of the logits, K ** -0.5 if None.
      mask_empty: the convention for empty slots (see above).
      initial_state: state of the tokens directly before; carried on only into the document
        whose id it holds.
      return_state: also return the state after the last token.
      impl: "auto", "reference" (token by token), "chunked" or "pallas".
      precision: of the matrix products, as in `jax.lax.dot_general`. The Hopper kernel has only the
        default one.

    Returns (out_BTHV, lse_BTH), both differentiable, or (out_BTHV, lse_BTH, SlotState). out has
    v's dtype; lse is float32 (float64 where an input is float64).
    Raises ValueError for shapes that do not agree, H % G != 0, a scale that is no Python number,
    a written_BT that is not boolean, non-integer segment ids, unknown impl.
    """
    _check(q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM, written_BT)
    scale = dispatch.number("gated_slots", "scale", scale)
    batch, time, heads, key_size = q_BTHK.shape
    kv_heads, value_size = v_BTGV.shape[2:]
    slots = log_gate_BTGM.shape[-1]
    segments.check("gated_slots", segment_ids, batch, time)
    sizes = dict(B=batch, G=kv_heads, M=slots, K=key_size, V=value_size)
    dispatch.check_state("gated_slots", initial_state, SlotState, **sizes)
    inputs = (q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM)
    dtype = dispatch.accumulator_dtype(*inputs)
    case = dict(
        dtype=dispatch.dtypes(q_BTHK, k_BTGK, v_BTGV),
        key_size=key_size,
        value_size=value_size,
        slots=slots,
        heads_per_kv=heads // kv_heads,
        state=initial_state is not None,
        accumulator=jnp.dtype(dtype).name,
        precision=mxu.precision_name(precision),
    )
    form = _FORMS[dispatch.resolve("gated_slots", impl, case, SUPPORT, time)]

    ids_BT = segments.or_one_document(segment_ids, batch, time)
    if written_BT is not None:  # what is not written may be of another document
        k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM = (
            None if x is None else jnp.where(written_BT[:, :, None, None], x, 0)
            for x in (k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM)
        )
    inputs = (q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM)
    contained = nonfinite.contain(ids_BT, inputs, state=initial_state)
    q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM = contained.inputs
    state = contained.state
    if state is None:  # not checked: XLA would evaluate that while it compiles, slowly
        state = empty_state(batch, kv_heads, slots, key_size, value_size, dtype)
    starts_BT = segments.document_starts(ids_BT, state.segment_ids_B)
    k_slots_BGMK, v_slots_BGMV = (x.astype(dtype) for x in (state.k_slots_BGMK, state.v_slots_BGMV))
    real_BT = ids_BT != 0
    update_BT = real_BT if written_BT is None else real_BT & written_BT

    log_gate_BTGM = log_gate_BTGM.astype(dtype)
    write_BTGM = -jnp.expm1(log_gate_BTGM) if write_BTGM is None else write_BTGM.astype(dtype)
    update_BT11 = update_BT[:, :, None, None]
    out_BTGRV, lse_BTGR, k_slots_BGMK, v_slots_BGMV = form(
        q_BTHK.astype(dtype).reshape(batch, time, kv_heads, heads // kv_heads, key_size),
        k_BTGK.astype(dtype),
        v_BTGV.astype(dtype),
        jnp.where(update_BT11, log_gate_BTGM, 0),
        jnp.where(update_BT11, write_BTGM, 0),
        starts_BT | ~real_BT,
        k_slots_BGMK,
        v_slots_BGMV,
        scale=key_size**-0.5 if scale is None else scale,
        precision=precision,
    )
    filled_BT = filled(starts_BT, update_BT, state.written_B)
    seen_BT1 = (real_BT & filled_BT if mask_empty else real_BT)[:, :, None]
    out_BTHV = out_BTGRV.reshape(batch, time, heads, value_size)
    out_BTHV = jnp.where(seen_BT1[..., None], out_BTHV, 0).astype(v_BTGV.dtype)
    lse_BTH = jnp.where(seen_BT1, lse_BTGR.reshape(batch, time, heads), NEGATIVE)
    out_BTHV, lse_BTH = contained.mark(out_BTHV), contained.mark(lse_BTH, nonfinite.NO_KEYS)
    if not return_state:
        return out_BTHV, lse_BTH
    final = SlotState(k_slots_BGMK, v_slots_BGMV, ids_BT[:, -1], filled_BT[:, -1])
    return out_BTHV, lse_BTH, contained.mark_state(final)


def filled(starts_BT, update_BT, written_B) -> Bool[Array, "B T"]:
    """Whether the token's document has written a token up to it; `written_B` is that of the state."""
    index_1T = jnp.arange(starts_BT.shape[1], dtype=jnp.int32)[None]
    start_BT = jax.lax.cummax(jnp.where(starts_BT, index_1T, -1), axis=1)
    newest_BT = jax.lax.cummax(jnp.where(update_BT, index_1T, -2), axis=1)
    return (newest_BT >= start_BT) | ((start_BT < 0) & written_B[:, None])


def _check(q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM, written_BT) -> None:
    op = "gated_slots"
    if q_BTHK.ndim != 4 or q_BTHK.shape[1] < 1:
        raise ValueError(f"{op}: q must have shape (B, T, H, K) with T >= 1, got {q_BTHK.shape}.")
    batch, time, heads, key_size = q_BTHK.shape
    if k_BTGK.ndim != 4 or (*k_BTGK.shape[:2], k_BTGK.shape[3]) != (batch, time, key_size):
        raise ValueError(
            f"{op}: k must have shape (B, T, G, K) with B={batch}, T={time}, K={key_size}, "
            f"got {k_BTGK.shape}."
        )
    if v_BTGV.ndim != 4 or v_BTGV.shape[:3] != k_BTGK.shape[:3]:
        raise ValueError(
            f"{op}: v must agree with k on (B, T, G) = {k_BTGK.shape[:3]}, got {v_BTGV.shape}."
        )
    kv_heads = k_BTGK.shape[2]
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{op}: query heads must be a multiple of key/value heads, got {heads} and {kv_heads}."
        )
    leading, shape = k_BTGK.shape[:3], log_gate_BTGM.shape
    if log_gate_BTGM.ndim != 4 or shape[:3] != leading or shape[3] < 1:
        raise ValueError(
            f"{op}: log_gate must have shape (B, T, G, M) with (B, T, G) = {leading} and M >= 1, "
            f"got {shape}."
        )
    if write_BTGM is not None:
        dispatch.check_shape(op, "write", write_BTGM, log_gate_BTGM.shape, "B T G M")
    arrays = dict(q=q_BTHK, k=k_BTGK, v=v_BTGV, log_gate=log_gate_BTGM, write=write_BTGM)
    dispatch.check_arrays(op, **arrays)
    if written_BT is not None:
        dispatch.check_shape(op, "written", written_BT, (batch, time), "B T")
        dispatch.check_dtype(op, "written", written_BT, "booleans")

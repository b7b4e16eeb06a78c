"""Causal softmax attention: full or windowed, grouped heads, documents, sinks, soft cap.

Returns the output and its log-sum-exp, both differentiable, so that a caller can merge
several attentions over disjoint keys into one softmax.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas import dispatch, nonfinite, segments
from kernels_pallas.attention import chunked, forget, hopper, reference, tpu, tpu_spans
from kernels_pallas.attention.decode import decode_attention as _decode_attention

_FORMS = {
    "reference": reference.attention,
    "chunked": chunked.attention,
    "tpu": tpu_spans.attention,
    "hopper": hopper.attention,
}
SUPPORT = (
    *dispatch.XLA_ONLY,
    dispatch.Backend(
        "tpu",
        "pallas",
        dict(
            platform=("tpu",),
            dtype=("bfloat16", "float32"),
            key_size=range(1, 257),
            value_size=range(1, 257),
            heads_per_kv=range(1, 129),
            window=dispatch.ANY,
            traced_window=(False,),
            sinks=(False, True),
            soft_cap=(False, True),
            forget=(False, True),
            state=(False, True),
            vmem_mib=range(tpu.VMEM_MIB + 1),
        ),
    ),
    dispatch.Backend(
        "hopper",
        "pallas",
        dict(
            platform=("gpu",),
            dtype=("bfloat16",),
            key_size=range(1, hopper.MAX_SIZE + 1),
            value_size=range(1, hopper.MAX_SIZE + 1),
            heads_per_kv=range(1, 9),
            window=dispatch.ANY,
            traced_window=(False, True),
            sinks=(False, True),
            soft_cap=(False, True),
            forget=(False, True, "and soft_cap"),
            state=(False, True),
            vmem_mib=dispatch.ANY,
        ),
        auto=False,
    ),
)


class AttentionState(NamedTuple):
    """Keys, values and segment ids of the S tokens directly before the first one.

    Oldest first; a slot with segment id 0 is empty (or padding) and no query sees it. The log forget
    gates are None where there are none.
    """

    k_BSGK: Float[Array, "B S G K"]
    v_BSGV: Float[Array, "B S G V"]
    segment_ids_BS: Int[Array, "B S"]
    log_forget_BSH: Float[Array, "B S H"] | None = None


def empty_state(
    batch: int,
    slots: int,
    kv_heads: int,
    key_size: int,
    value_size: int,
    dtype=jnp.float32,
    forget_heads: int | None = None,
) -> AttentionState:
    """A state of `slots` empty slots: window - 1 of them to start a windowed decode. `forget_heads` are
    the query heads where these have forget gates."""
    return AttentionState(
        jnp.zeros((batch, slots, kv_heads, key_size), dtype),
        jnp.zeros((batch, slots, kv_heads, value_size), dtype),
        jnp.zeros((batch, slots), jnp.int32),
        None if forget_heads is None else jnp.zeros((batch, slots, forget_heads), jnp.float32),
    )


def attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    window: int | Int[Array, ""] | None = None,
    scale: float | None = None,
    sinks_H: Float[Array, "H"] | None = None,
    soft_cap: float | None = None,
    log_forget_BTH: Float[Array, "B T F"] | None = None,
    heads_per_gate: int = 1,
    initial_state: AttentionState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision=None,
) -> tuple:
    """softmax(cap(scale * q k^T)) v over the tokens of each query's document up to the query.

    Query head h reads key/value head h // (H // G). Padding (segment id 0) gets out = 0 and
    lse = -1e30, passes no gradient, and no query sees it.

    Arguments:
      q_BTHK, k_BTGK, v_BTGV: any floating dtype; H is a multiple of G.
      segment_ids: int (B, T), 0 = padding, a change = boundary; None = one document (id 1).
      window: keys a query sees, its own included, counted in time indices; None = all. An int32
        scalar array, which may be traced, serves all windows >= 1 with one program, at the cost
        of full attention; it cannot be combined with a state.
      scale: of the logits, K ** -0.5 if None.
      sinks_H: a learned logit per head that joins the denominator only (gpt-oss).
      soft_cap: logits become soft_cap * tanh(logits / soft_cap) (Gemma 2).
      log_forget_BTH: logarithms of forget gates, at most 0, as floating point numbers of any dtype
        (the Forgetting Transformer, arXiv 2503.02130): query i sees key j with the logit, capped if at
        all, plus the sum of the log-gates of the tokens after j up to i. Minus infinity is a gate of 0;
        values below `forget.LOWEST` count as that. None is gates of 1.
      heads_per_gate: query heads, next to each other, that share a forget gate; it divides H // G, and
        log_forget_BTH, like that of a state, has H // heads_per_gate gates a token.
      initial_state: tokens directly before the first one, any number of slots; a window uses at
        most window - 1 of them.
      return_state: also return the state after the last token: window - 1 slots with a window (the
        oldest are empty while the sequence is shorter), all slots without.
      impl: "auto", "reference" (dense), "chunked" (memory linear in T) or "pallas".
      precision: of the matrix products, as in `jax.lax.dot_general`.

    Returns (out_BTHV, lse_BTH), or (out_BTHV, lse_BTH, AttentionState). out has v's dtype;
    lse, sink included, is float32 (float64 where an input is float64).
    Raises ValueError for shapes that do not agree, H % G != 0, window < 1, soft_cap <= 0, a
    scale that is no Python number, non-integer segment ids, a window that is an array together
    with a state, unknown impl.
    """
    _check(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        segment_ids,
        window,
        sinks_H,
        log_forget_BTH,
        heads_per_gate,
        initial_state,
    )
    scale = dispatch.number("attention", "scale", scale)
    soft_cap = _soft_cap("attention", soft_cap)
    traced = isinstance(window, jnp.ndarray)
    if traced and (return_state or initial_state is not None):
        raise ValueError(
            "attention: a window that is an array cannot be combined with a state; use an int."
        )
    batch, time, heads, key_size = q_BTHK.shape
    kv_heads, value_size = v_BTGV.shape[2:]
    slots = 0 if initial_state is None else initial_state.k_BSGK.shape[1]
    # At most the number of keys, so that a window of any length is an int32.
    bound = min(window, slots + time) if isinstance(window, int) else None
    slots = slots if bound is None else min(slots, bound - 1)
    has_gates = log_forget_BTH is not None or (
        initial_state is not None and initial_state.log_forget_BSH is not None
    )
    case = _case(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        slots=slots,
        bound=bound,
        traced_window=traced,
        sinks=sinks_H is not None,
        soft_cap=soft_cap is not None,
        has_gates=has_gates,
        state=initial_state is not None,
    )
    backend = dispatch.resolve("attention", impl, case, SUPPORT, time)

    ids_BS = segments.or_one_document(segment_ids, batch, time)
    if has_gates and log_forget_BTH is None:
        log_forget_BTH = jnp.zeros(
            (batch, time, heads // heads_per_gate), initial_state.log_forget_BSH.dtype
        )
    tokens = AttentionState(k_BTGK, v_BTGV, ids_BS, log_forget_BTH)
    if initial_state is not None:
        tokens = _after(_last_slots(initial_state, None if bound is None else slots), tokens)
    if has_gates:
        # Padding forgets nothing, so that its content changes no bit of a sum.
        is_padding_BS1 = (tokens.segment_ids_BS == 0)[..., None]
        bounded_BSH = jnp.where(is_padding_BS1, 0, forget.bounded(tokens.log_forget_BSH))
        tokens = tokens._replace(log_forget_BSH=bounded_BSH)
    ids_BS = tokens.segment_ids_BS
    values = q_BTHK, tokens.k_BSGK, tokens.v_BSGV
    options = dict(
        window=window if traced else bound,
        scale=key_size**-0.5 if scale is None else scale,
        soft_cap=soft_cap,
        precision=precision,
    )
    if backend == "tpu" and not has_gates:  # its kernels contain NaN and infinity themselves
        out_BTHV, lse_BTH = tpu_spans.attention(*values, ids_BS, sinks_H, **options)
    else:
        log_forget = tokens.log_forget_BSH
        contained = nonfinite.contain_attention(*values, ids_BS, options["window"], log_forget)
        values, log_forget = contained.inputs[:3], contained.inputs[3:]
        if backend != "chunked":  # which alone sums a gate once for all heads that share it
            log_forget = (jnp.repeat(x_BSF, heads_per_gate, axis=2) for x_BSF in log_forget)
        out_BTHV, lse_BTH = _FORMS[backend](*values, ids_BS, sinks_H, *log_forget, **options)
        out_BTHV, lse_BTH = contained.mark(out_BTHV), contained.mark(lse_BTH, nonfinite.NO_KEYS)
    if not return_state:
        return out_BTHV, lse_BTH
    if window is not None:
        missing = window - 1 - ids_BS.shape[1]
        if missing > 0:
            tokens = _after(empty_state(batch, missing, kv_heads, key_size, value_size), tokens)
        tokens = _last_slots(tokens, window - 1)
    return out_BTHV, lse_BTH, tokens


def chosen(q_BTHK, k_BTGK, v_BTGV, sinks_H, soft_cap, impl: str) -> str:
    """The name of the backend for full attention of these arrays, without a state and forget gates."""
    options = dict(sinks=sinks_H is not None, soft_cap=soft_cap is not None)
    case = _case(q_BTHK, k_BTGK, v_BTGV, **options)
    return dispatch.resolve("attention", impl, case, SUPPORT, q_BTHK.shape[1])


def decode_attention(
    q_BHK: Float[Array, "B H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGV: Float[Array, "B S G V"],
    valid_BS: Bool[Array, "B S"],
    *,
    scale: float | None = None,
    sinks_H: Float[Array, "H"] | None = None,
    soft_cap: float | None = None,
    bias_BSH: Float[Array, "B S H"] | None = None,
) -> Float[Array, "B H V"]:
    """Attention of one query per row over a cache whose slots may be in any order (a ring buffer).

    Arguments:
      q_BHK, k_BSGK, v_BSGV: any floating dtype; H is a multiple of G.
      valid_BS: bool, the slots that the query sees, its own token's included.
      scale, sinks_H, soft_cap: as in `attention`.
      bias_BSH: added to the logits after the cap, finite: with forget gates `forget.after_each_token`.

    Returns out_BHV in v's dtype; 0 where a row has no valid slot.
    Raises ValueError for shapes that do not agree or a mask that is not boolean.
    """
    op = "decode_attention"
    if q_BHK.ndim != 3:
        raise ValueError(f"{op}: q must have shape (B, H, K), got {q_BHK.shape}.")
    _check_heads(op, q_BHK[:, None], k_BSGK, v_BSGV, sinks_H)
    scale, soft_cap = dispatch.number(op, "scale", scale), _soft_cap(op, soft_cap)
    dispatch.check_shape(op, "valid_BS", valid_BS, k_BSGK.shape[:2], "B S")
    if valid_BS.dtype != bool:
        raise ValueError(f"{op}: valid_BS must be boolean, got {valid_BS.dtype}.")
    if bias_BSH is not None:
        shape = *k_BSGK.shape[:2], q_BHK.shape[1]
        dispatch.check_shape(op, "bias_BSH", bias_BSH, shape, "B S H")
        dispatch.check_arrays(op, bias_BSH=bias_BSH)
    scale = q_BHK.shape[-1] ** -0.5 if scale is None else scale
    return _decode_attention(q_BHK, k_BSGK, v_BSGV, valid_BS, sinks_H, scale, soft_cap, bias_BSH)


def _case(
    q_BTHK,
    k_BTGK,
    v_BTGV,
    *,
    sinks: bool,
    soft_cap: bool,
    slots: int = 0,
    bound: int | None = None,
    traced_window: bool = False,
    has_gates: bool = False,
    state: bool = False,
) -> dict:
    """The features of a call, for `SUPPORT`."""
    time, heads, key_size = q_BTHK.shape[1:]
    kv_heads, value_size = v_BTGV.shape[2:]
    group = heads // kv_heads
    return dict(
        dtype=dispatch.dtypes(q_BTHK, k_BTGK, v_BTGV),
        key_size=key_size,
        value_size=value_size,
        heads_per_kv=group,
        window=bound,
        traced_window=traced_window,
        sinks=sinks,
        soft_cap=soft_cap,
        forget="and soft_cap" if has_gates and soft_cap else has_gates,
        state=state,
        vmem_mib=tpu_spans.vmem_mib(
            time, slots, bound, key_size, value_size, q_BTHK.dtype, group if has_gates else 0
        ),
    )


def _after(old: AttentionState, new: AttentionState) -> AttentionState:
    """Both, in this order, in the new one's dtypes; where only one has forget gates, the other's are 1."""

    def joined(before: Array | None, after: Array | None) -> Array | None:
        if before is None and after is None:
            return None
        if after is None:
            after = jnp.zeros((*new.segment_ids_BS.shape, before.shape[2]), before.dtype)
        if before is None:
            before = jnp.zeros((*old.segment_ids_BS.shape, after.shape[2]), after.dtype)
        return jnp.concatenate([before.astype(after.dtype), after], axis=1)

    return AttentionState(*(joined(*pair) for pair in zip(old, new)))


def _last_slots(state: AttentionState, slots: int | None) -> AttentionState:
    """The newest `slots` slots, or all of them."""
    if slots is None or state.k_BSGK.shape[1] <= slots:
        return state
    first = state.k_BSGK.shape[1] - slots
    return jax.tree.map(lambda array: array[:, first:], state)


def _check(
    q_BTHK,
    k_BTGK,
    v_BTGV,
    segment_ids,
    window,
    sinks_H,
    log_forget_BTH,
    heads_per_gate,
    initial_state,
) -> None:
    op = "attention"
    if q_BTHK.ndim != 4 or q_BTHK.shape[1] < 1:
        raise ValueError(f"{op}: q must have shape (B, T, H, K) with T >= 1, got {q_BTHK.shape}.")
    _check_heads(op, q_BTHK, k_BTGK, v_BTGV, sinks_H)
    batch, time = q_BTHK.shape[:2]
    kv_heads, key_size = k_BTGK.shape[2:]
    if k_BTGK.shape[1] != time:
        raise ValueError(f"{op}: q and k must have the same time, got {time}, {k_BTGK.shape[1]}.")
    is_scalar = isinstance(window, jnp.ndarray) and window.shape == () and window.dtype == jnp.int32
    if not is_scalar and window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(
            f"{op}: window must be None, an int >= 1 that counts the own key, or an int32 scalar array;"
            f" got {window}."
        )
    segments.check(op, segment_ids, batch, time)
    heads = q_BTHK.shape[2]
    if heads_per_gate < 1 or heads // kv_heads % heads_per_gate:
        raise ValueError(
            f"{op}: heads_per_gate must divide the {heads // kv_heads} query heads of a key/value"
            f" head, got {heads_per_gate}."
        )
    gates = heads // heads_per_gate
    if log_forget_BTH is not None:
        dispatch.check_shape(op, "log_forget_BTH", log_forget_BTH, (batch, time, gates), "B T H")
        dispatch.check_arrays(op, log_forget_BTH=log_forget_BTH)
    sizes = dict(B=batch, G=kv_heads, K=key_size, V=v_BTGV.shape[3], H=gates)
    dispatch.check_state(op, initial_state, AttentionState, **sizes)


def _soft_cap(op, soft_cap) -> float | None:
    soft_cap = dispatch.number(op, "soft_cap", soft_cap)
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"{op}: soft_cap must be None or > 0, got {soft_cap}.")
    return soft_cap


def _check_heads(op, q_BTHK, k_BSGK, v_BSGV, sinks_H) -> None:
    batch, _, heads, key_size = q_BTHK.shape
    if k_BSGK.ndim != 4 or (k_BSGK.shape[0], k_BSGK.shape[3]) != (batch, key_size):
        raise ValueError(
            f"{op}: k must have shape (B, T, G, K) with B={batch}, K={key_size}, "
            f"got {k_BSGK.shape}."
        )
    if v_BSGV.ndim != 4 or v_BSGV.shape[:3] != k_BSGK.shape[:3]:
        raise ValueError(
            f"{op}: v must agree with k on (B, T, G) = {k_BSGK.shape[:3]}, got {v_BSGV.shape}."
        )
    kv_heads = k_BSGK.shape[2]
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{op}: query heads must be a multiple of key/value heads, got {heads} and {kv_heads}."
        )
    if sinks_H is not None:
        dispatch.check_shape(op, "sinks_H", sinks_H, (heads,), "H")
    dispatch.check_arrays(op, q=q_BTHK, k=k_BSGK, v=v_BSGV, sinks_H=sinks_H)

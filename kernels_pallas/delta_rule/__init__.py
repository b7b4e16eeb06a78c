"""The delta rule: DeltaNet, Gated DeltaNet, Kimi Delta Attention and Gated DeltaNet-2 as one op.

A state that is written by correcting what it already returns for a key: DeltaNet (Schlag et
al. 2021, arXiv:2102.11174; in chunks Yang et al. 2024, arXiv:2406.06484), with one gate per
head Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464), with one gate per key channel Kimi
Delta Attention (Kimi Team 2025, arXiv:2510.26692).

With an erase key e the state is read, and what it returns removed, at another key than it is
written at: Gated DeltaNet-2 (Hatamizadeh et al. 2026, arXiv:2605.22791) has e = b * k and values
w * v, with a gate b per key channel and a gate w per value channel.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas import dispatch, mxu, nonfinite, segments
from kernels_pallas.delta_rule import chunked, hopper, reference, tpu
from kernels_pallas.delta_rule.inputs import unit
from kernels_pallas.forms import Call

_SIZES = (64, 128, 192, 256)
SUPPORT = (
    *dispatch.XLA_ONLY,
    dispatch.Backend(
        "tpu",
        "pallas",
        dict(
            platform=("tpu",),
            dtype=("float32", "bfloat16"),
            accumulator=("float32",),
            key_size=_SIZES,
            value_size=_SIZES,
            step_heads=range(1, 9),
            gate=("none", "head", "channel"),
            erase=(False, True),
            key_dtype=dispatch.ANY,
            precision=dispatch.ANY,
        ),
    ),
    dispatch.Backend(
        "hopper",
        "pallas",
        dict(
            platform=("gpu",),
            dtype=("bfloat16",),
            accumulator=("float32",),
            key_size=(64, 128),
            value_size=(64, 128),
            step_heads=dispatch.ANY,
            gate=("none", "head", "channel"),
            erase=(False, True),
            key_dtype=("bfloat16",),
            precision=("default",),
        ),
        auto=False,
    ),
)
_FORMS = {
    "reference": reference.delta_rule,
    "chunked": chunked.delta_rule,
    "hopper": hopper.delta_rule,
}


class DeltaRuleState(NamedTuple):
    """The last S (float32 or float64) and its token's segment id.

    A segment id of 0 marks an empty state: its S is never used.
    """

    s_BHKV: Float[Array, "B H K V"]
    segment_ids_B: Int[Array, "B"]


def empty_state(
    batch: int, heads: int, key_size: int, value_size: int, dtype=jnp.float32
) -> DeltaRuleState:
    """The state before any token; `heads` are value heads."""
    return DeltaRuleState(
        jnp.zeros((batch, heads, key_size, value_size), dtype), jnp.zeros((batch,), jnp.int32)
    )


def delta_rule(
    q_BTGK: Float[Array, "B T G K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTHV: Float[Array, "B T H V"],
    beta_BTH: Float[Array, "B T H"] | None = None,
    log_decay: Float[Array, "B T H"] | Float[Array, "B T H K"] | None = None,
    *,
    erase_BTGK: Float[Array, "B T G K"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    unit_eps: float | None = None,
    initial_state: DeltaRuleState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision=None,
) -> Float[Array, "B T H V"] | tuple[Float[Array, "B T H V"], DeltaRuleState]:
    """S <- Diag(a_t) S, then S <- S + beta_t k_t (v_t - S^T e_t)^T, then o_t = scale S^T q_t.

    e_t is the erase key, by default k_t: S_t = (I - beta_t k_t e_t^T) Diag(a_t) S_{t-1}
    + beta_t k_t v_t^T. The decay comes before the error, within each document. At a document's first
    token the carried S counts as 0 (so a_t and e_t are unused there); padding gives 0. Value head h
    reads query/key head h // (H // G). Nothing is normalised without `unit_eps`: without an erase key S
    stays bounded where beta_t |k_t|^2 <= 2, which keys of length 1 and beta in [0, 2] give.

    Arguments:
      q_BTGK, k_BTGK: any floating dtype.
      v_BTHV: any floating dtype; H is a multiple of G, V need not be K.
      beta_BTH: writing strength, above 1 for negative eigenvalues of a_t (I - beta_t k_t k_t^T).
        None is 1.
      log_decay: log a_t <= 0, float32 advised. None is a_t = 1 (DeltaNet); (B, T, H) one per
        head (Gated DeltaNet); (B, T, H, K) one per key channel (Kimi Delta Attention).
      erase_BTGK: any floating dtype. None is k, at less cost. Gated DeltaNet-2 has b_t * k_t with
        beta 1. A rule that reads the state before its decay divides its key by a_t.
      segment_ids: int (B, T), 0 = padding, a change = boundary; None = one document (id 1).
      scale: of the output, K ** -0.5 if None.
      unit_eps: if given, q and k are divided by sqrt(sum of their squares + unit_eps) first, in
        float32, and rounded to their dtype; an erase key is not. The TPU kernel does this itself.
      initial_state: state of the tokens directly before; carried on only into the document
        whose id it holds.
      return_state: also return the state after the last token.
      impl: "auto", "reference" (token by token), "chunked" or "pallas".
      precision: of the matrix products, as in `jax.lax.dot_general`; the chunked form inverts
        its triangular systems in the highest precision in any case. At the default precision the
        TPU kernel rounds operands to bfloat16, as XLA does there, and inverts in float32 (three
        bfloat16 products instead of one). The Hopper kernels have only that precision.

    Returns o_BTHV in v's dtype, or (o_BTHV, DeltaRuleState); S and all sums are float32
    (float64 where an input is float64).
    Raises ValueError for shapes that do not agree, H % G != 0, a scale or unit_eps that is no Python
    number, a unit_eps that is not above 0, non-integer segment ids, unknown impl.
    """
    _check(q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, segment_ids, initial_state)
    scale = dispatch.number("delta_rule", "scale", scale)
    unit_eps = dispatch.number("delta_rule", "unit_eps", unit_eps)
    if unit_eps is not None and not unit_eps > 0:
        raise ValueError(f"delta_rule: unit_eps must be above 0, got {unit_eps}.")
    batch, time, kv_heads, key_size = k_BTGK.shape
    heads, value_size = v_BTHV.shape[2:]
    if beta_BTH is None:
        beta_BTH = jnp.ones((batch, time, heads), v_BTHV.dtype)
    gate = "none" if log_decay is None else "head" if log_decay.ndim == 3 else "channel"
    others = [x for x in (log_decay, erase_BTGK) if x is not None]
    dtype = dispatch.accumulator_dtype(q_BTGK, k_BTGK, v_BTHV, beta_BTH, *others)
    step = tpu.step_heads(kv_heads, heads, key_size, value_size)
    case = dict(
        dtype=str(v_BTHV.dtype),
        accumulator=jnp.dtype(dtype).name,
        key_size=key_size,
        value_size=value_size,
        step_heads=step.heads,
        gate=gate,
        erase=erase_BTGK is not None,
        key_dtype=dispatch.dtypes(*(x for x in (q_BTGK, k_BTGK, erase_BTGK) if x is not None)),
        precision=mxu.precision_name(precision),
    )
    form = dispatch.resolve("delta_rule", impl, case, SUPPORT, time)

    ids_BT = segments.or_one_document(segment_ids, batch, time)
    scale = key_size**-0.5 if scale is None else scale
    by_kernel, logs = form == "tpu", (log_decay,)
    inputs = q_BTGK, k_BTGK, v_BTHV, beta_BTH, erase_BTGK
    options = dict(logs=logs, state=initial_state, by_kernel=by_kernel)
    contained = nonfinite.contain(ids_BT, inputs, **options)
    if initial_state is None:
        state = empty_state(batch, heads, key_size, value_size, dtype)
        contained = contained._replace(state=state)
    call = Call.of(ids_BT, *contained.state, dtype, scale, precision)
    *inputs, erase_BTGK, log_decay = contained.inputs
    if unit_eps is not None and not by_kernel:  # what is not finite has been replaced
        inputs[:2] = (unit(x, unit_eps) for x in inputs[:2])
    inputs = *inputs, log_decay, erase_BTGK, call
    if by_kernel:
        o_BTHV, s_BHKV, *found = tpu.delta_rule(*inputs, unit_eps)
        contained = contained.found(ids_BT, *found)
    else:
        o_BTHV, s_BHKV = _FORMS[form](*inputs)
    o_BTHV = contained.mark(o_BTHV.astype(v_BTHV.dtype))
    if not return_state:
        return o_BTHV
    return o_BTHV, contained.mark_state(DeltaRuleState(s_BHKV, ids_BT[:, -1]))


def _check(
    q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, segment_ids, initial_state
) -> None:
    op = "delta_rule"
    if k_BTGK.ndim != 4 or k_BTGK.shape[1] < 1:
        raise ValueError(f"{op}: k must have shape (B, T, G, K) with T >= 1, got {k_BTGK.shape}.")
    batch, time, kv_heads, key_size = k_BTGK.shape
    dispatch.check_shape(op, "q", q_BTGK, k_BTGK.shape, "B T G K")
    if v_BTHV.ndim != 4 or v_BTHV.shape[:2] != (batch, time):
        raise ValueError(
            f"{op}: v must have shape (B, T, H, V) with (B, T) = {(batch, time)}, "
            f"got {v_BTHV.shape}."
        )
    heads, value_size = v_BTHV.shape[2:]
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{op}: value heads must be a multiple of query/key heads, got {heads} and {kv_heads}."
        )
    if erase_BTGK is not None:
        dispatch.check_shape(op, "erase", erase_BTGK, k_BTGK.shape, "B T G K")
    if beta_BTH is not None:
        dispatch.check_shape(op, "beta", beta_BTH, (batch, time, heads), "B T H")
    if log_decay is not None and log_decay.ndim == 4:
        shape = (batch, time, heads, key_size)
        dispatch.check_shape(op, "log_decay", log_decay, shape, "B T H K")
    elif log_decay is not None:
        dispatch.check_shape(op, "log_decay", log_decay, (batch, time, heads), "B T H")
    arrays = dict(q=q_BTGK, k=k_BTGK, v=v_BTHV, beta=beta_BTH, log_decay=log_decay)
    dispatch.check_arrays(op, **arrays, erase=erase_BTGK)
    segments.check(op, segment_ids, batch, time)
    sizes = dict(B=batch, H=heads, K=key_size, V=value_size)
    dispatch.check_state(op, initial_state, DeltaRuleState, **sizes)

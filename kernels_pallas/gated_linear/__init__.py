"""Gated linear attention S_t = decay_t S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t.

The op of Mamba-2/SSD (arXiv:2405.21060), GLA (arXiv:2312.06635 section 4), HGRN2
(arXiv:2404.07904), Lightning Attention (arXiv:2401.04658), RetNet (arXiv:2307.08621) and the
matrix memory of mLSTM (arXiv:2405.04517), which differ in its inputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas import dispatch, mxu, nonfinite, segments
from kernels_pallas.forms import Call
from kernels_pallas.gated_linear import chunked, hopper, reference, tpu

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
            decay_axes=(1, 3, 4),
            key_dtype=dispatch.ANY,
            precision=dispatch.ANY,
        ),
    ),
    dispatch.Backend(
        "hopper",
        "pallas",
        dict(
            platform=("gpu",),
            dtype=("float32", "bfloat16"),  # of the values; products read them in bfloat16
            accumulator=("float32",),
            key_size=range(1, 257),
            value_size=range(1, 257),
            step_heads=dispatch.ANY,
            decay_axes=(1, 3, 4),
            key_dtype=("bfloat16",),
            precision=("default",),
        ),
        auto=False,
    ),
)
_FORMS = {
    "reference": reference.gated_linear,
    "chunked": chunked.gated_linear,
    "hopper": hopper.gated_linear,
}


class GatedLinearState(NamedTuple):
    """The last S (float32 or float64) and its token's segment id.

    A segment id of 0 marks an empty state: its S is never used.
    """

    s_BHKV: Float[Array, "B H K V"]
    segment_ids_B: Int[Array, "B"]


def empty_state(
    batch: int, heads: int, key_size: int, value_size: int, dtype=jnp.float32
) -> GatedLinearState:
    """The state before any token; `heads` are the value's."""
    return GatedLinearState(
        jnp.zeros((batch, heads, key_size, value_size), dtype), jnp.zeros((batch,), jnp.int32)
    )


def gated_linear(
    q_BTGK: Float[Array, "B T G K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTHV: Float[Array, "B T H V"],
    log_decay: Float[Array, "*any H_or_K"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    initial_state: GatedLinearState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "B T H V"] | tuple[Float[Array, "B T H V"], GatedLinearState]:
    """o_t = scale S_t^T q_t with S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T in each document.

    A token sees itself, undecayed. At a document's first token the carried S counts as 0 (so
    its decay is unused); padding gives 0. Value head h reads query/key head h // (H // G),
    which is never repeated in memory. Decays are always exp of sums <= 0: exact for
    log_decay = 0, finite for any strength (-inf included).

    Arguments:
      q_BTGK, k_BTGK: G query/key heads (Mamba-2's C and B, with G groups), any floating dtype.
      v_BTHV: H value heads, a multiple of G.
      log_decay: logarithm of the decay, <= 0; its shape decides: (H,) fixed per head,
        (B, T, H) per token and head, (B, T, H, K) per token, head and channel of the key.
      segment_ids: int (B, T), 0 = padding, a change = boundary; None = one document (id 1).
      scale: factor on the output; None is 1.
      initial_state: state of the tokens directly before; carried on only into the document
        whose id it holds.
      return_state: also return the state after the last token.
      impl: "auto", "reference" (token by token), "chunked" or "pallas".
      precision: of the matrix products, as in `jax.numpy.matmul`; they are float32 (float64
        where an input is float64), as are sums, decays and states. At the default precision the TPU
        kernel rounds operands to bfloat16, as XLA does there; the Hopper kernel has only that
        precision, and takes values of float32 beside keys of bfloat16, which Mamba-2 and Mamba-3
        have in a model that computes in bfloat16.

    Returns o_BTHV in v's dtype, or (o_BTHV, GatedLinearState).
    Raises ValueError for shapes that do not agree, a scale that is no Python number, non-integer
    segment ids, unknown impl.
    """
    _check(q_BTGK, k_BTGK, v_BTHV, log_decay, segment_ids, initial_state)
    scale = dispatch.number("gated_linear", "scale", scale)
    batch, time, heads, value_size = v_BTHV.shape
    groups, key_size = k_BTGK.shape[2:]
    dtype = dispatch.accumulator_dtype(q_BTGK, k_BTGK, v_BTHV, log_decay)
    step = tpu.step_heads(groups, heads, key_size, value_size, log_decay.ndim == 4)
    case = dict(
        dtype=str(v_BTHV.dtype),
        accumulator=jnp.dtype(dtype).name,
        key_size=key_size,
        value_size=value_size,
        step_heads=step.heads,
        decay_axes=log_decay.ndim,
        key_dtype=dispatch.dtypes(q_BTGK, k_BTGK),
        precision=mxu.precision_name(precision),
    )
    form = dispatch.resolve("gated_linear", impl, case, SUPPORT, time)

    ids_BT = segments.or_one_document(segment_ids, batch, time)
    per_token = () if log_decay.ndim == 1 else (log_decay,)
    by_kernel, inputs = form == "tpu", (q_BTGK, k_BTGK, v_BTHV)
    options = dict(logs=per_token, state=initial_state, by_kernel=by_kernel)
    contained = nonfinite.contain(ids_BT, inputs, **options)
    if initial_state is None:
        state = empty_state(batch, heads, key_size, value_size, dtype)
        contained = contained._replace(state=state)
    q_BTGK, k_BTGK, v_BTHV, *per_token = contained.inputs
    call = Call.of(ids_BT, *contained.state, dtype, scale, precision)
    inputs = q_BTGK, k_BTGK, v_BTHV, *(per_token or (log_decay,)), call
    if by_kernel:
        o_BTHV, s_BHKV, *found = tpu.gated_linear(*inputs)
        contained = contained.found(ids_BT, *found)
    else:
        o_BTHV, s_BHKV = _FORMS[form](*inputs)
    o_BTHV = contained.mark(o_BTHV.astype(v_BTHV.dtype))
    if not return_state:
        return o_BTHV
    return o_BTHV, contained.mark_state(GatedLinearState(s_BHKV, ids_BT[:, -1]))


def _check(q_BTGK, k_BTGK, v_BTHV, log_decay, segment_ids, initial_state) -> None:
    op = "gated_linear"
    for name, x in dict(q=q_BTGK, v=v_BTHV).items():
        if x.ndim != 4 or x.shape[1] < 1:
            dims = "(B, T, G, K)" if name == "q" else "(B, T, H, V)"
            raise ValueError(f"{op}: {name} must have shape {dims} with T >= 1, got {x.shape}.")
    batch, time, groups, key_size = q_BTGK.shape
    heads, value_size = v_BTHV.shape[2:]
    dispatch.check_shape(op, "k", k_BTGK, q_BTGK.shape, "B T G K")
    dispatch.check_shape(op, "v", v_BTHV, (batch, time, heads, value_size), "B T H V")
    if groups < 1 or heads % groups:
        raise ValueError(
            f"{op}: value heads must be a multiple of the {groups} query/key heads, got {heads}."
        )
    shapes = {1: (heads,), 3: (batch, time, heads), 4: (batch, time, heads, key_size)}
    if log_decay.shape != shapes.get(log_decay.ndim):
        raise ValueError(
            f"{op}: log_decay must have shape (H,) = {shapes[1]}, (B, T, H) = {shapes[3]} or "
            f"(B, T, H, K) = {shapes[4]}, got {log_decay.shape}."
        )
    dispatch.check_arrays(op, q=q_BTGK, k=k_BTGK, v=v_BTHV, log_decay=log_decay)
    segments.check(op, segment_ids, batch, time)
    sizes = dict(B=batch, H=heads, K=key_size, V=value_size)
    dispatch.check_state(op, initial_state, GatedLinearState, **sizes)

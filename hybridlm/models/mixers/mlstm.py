"""mLSTM: xLSTM's matrix memory with exponential input gates, in the form of xLSTM-7B."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.norms import at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import Between, PositiveFloat, PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas import gated_linear, segments

NORMALIZER_EPS = 1e-6  # added to the normaliser after stabilisation, as the published code does
INPUT_BIAS = -10.0  # initial bias of the input gate: a layer begins by writing almost nothing
FORGET_BIAS = (3.0, 6.0)  # initial biases of the forget gates, evenly spaced over the heads
RESET = -1e30  # makes the (max, +) scan forget everything before it


@settings
class MLSTMConfig(MixerConfig):
    """Settings of the mLSTM mixer.

    Attributes:
      heads: matrix memories.
      qk_dim_factor: size of all query (and key) heads together over the model's width.
      v_dim_factor: size of all value heads together over the model's width; a head's memory is its
        key size x its value size.
      gate_soft_cap: cap * tanh(x / cap) on what input and forget gates are made of.
    """

    kind_name: ClassVar[str] = "mlstm"
    other_names: ClassVar[Mapping[str, str]] = {
        "matrix_lstm": "",
        "xlstm": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads",)
    equation: ClassVar[str] = (
        "C_t = f_t C_{t-1} + exp(i_t) k_t v_t^T, n likewise of k_t,"
        " h_t = C_t^T q_t / max(abs(n_t . q_t), 1)"
    )
    source: ClassVar[str] = "arXiv 2405.04517 sec. 2.3; xLSTM-7B, arXiv 2503.13427"
    operations: ClassVar[tuple[str, ...]] = ("gated_linear",)

    heads: PositiveInt = 4
    qk_dim_factor: PositiveFloat = 0.5
    v_dim_factor: PositiveFloat = 1.0
    # exp(-m) is to stay a float32 number
    gate_soft_cap: Annotated[float, Between(0, 80, low_open=True)] = 15.0

    def check_width(self, width: int) -> None:
        for name, head_size in zip(
            ("qk_dim_factor", "v_dim_factor"), self.head_sizes(width), strict=True
        ):
            size = getattr(self, name) * width
            require(
                head_size >= 1 and abs(head_size * self.heads - size) < 1e-6,
                name,
                f"times width {width} is {size:g}, which heads {self.heads} do not divide",
            )

    def head_sizes(self, width: int) -> tuple[int, int]:
        """(size of a query and key head, size of a value head)."""
        factors = self.qk_dim_factor, self.v_dim_factor
        return tuple(round(width * factor) // self.heads for factor in factors)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "MLSTM":
        return MLSTM(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        key, value = self.head_sizes(width)
        projections = 2 * width * self.heads * (2 * key + 3 * value + 2)
        return projections + 4 * self.heads * key * (value + 1)  # the normaliser is a value too

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len, itemsize
        key, value = self.head_sizes(width)
        return 4 * self.heads * (key * (value + 1) + 1)

    @property
    def mechanism(self) -> str:
        return f"mLSTM, {self.heads} heads"


class MLSTMState(NamedTuple):
    """Memories times exp(-m), whose last value column is the normaliser, and m (float32)."""

    memory: gated_linear.GatedLinearState
    stabilizer_BH: jax.Array


class MLSTM(Mixer):
    """out(sigmoid(o) * norm(h)): the mixer of `MLSTMConfig`."""

    def __init__(self, config: MLSTMConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, heads = spec.width, config.heads
        key, value = config.head_sizes(width)
        self.config = config
        self.key_size, self.value_size = key, value
        self.q = Linear(width, heads * key, ("embed", "heads"), rngs=rngs)
        self.k = Linear(width, heads * key, ("embed", "heads"), rngs=rngs)
        self.v = Linear(width, heads * value, ("embed", "heads"), rngs=rngs)
        self.output_gate = Linear(width, heads * value, ("embed", "heads"), rngs=rngs)
        self.input_gate = Gate(width, jnp.full(heads, INPUT_BIAS), config.gate_soft_cap, rngs=rngs)
        forget_bias = jnp.linspace(*FORGET_BIAS, heads)
        self.forget_gate = Gate(width, forget_bias, config.gate_soft_cap, rngs=rngs)
        self.norm = HeadLayerNorm(heads, value, spec.norm_eps)
        self.out = Linear(heads * value, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> MLSTMState:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        heads, dtype = self.config.heads, jnp.promote_types(dtype, jnp.float32)
        memory = gated_linear.empty_state(batch, heads, self.key_size, self.value_size + 1, dtype)
        return MLSTMState(memory, jnp.zeros((batch, heads), dtype))

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: MLSTMState | None
    ) -> tuple[jax.Array, MLSTMState]:
        batch, time, _ = x_BTD.shape
        heads, ids_BT = self.config.heads, context.segment_ids_BT
        before = None if state is None else state.memory  # what the op makes itself is not checked
        state = state or self.init_state(batch, time, x_BTD.dtype)
        write_BTH, log_decay_BTH, m_BTH = _stabilized_gates(
            self.input_gate(x_BTD), self.forget_gate(x_BTD), context, state
        )
        # No cotangent of a token that is padding or not finite enters the running maximum, which
        # would pass it to other documents.
        valid_BT1 = jnp.all(jnp.isfinite(x_BTD), axis=-1, keepdims=True) & (ids_BT != 0)[..., None]
        write_BTH = context.hook("hook_input_gate", jnp.where(valid_BT1, write_BTH, 0))
        q_BTHK = self.q(x_BTD).reshape(batch, time, heads, self.key_size)
        k_BTHK = self.k(x_BTD).reshape(batch, time, heads, self.key_size)
        v_BTHV = at_least_float32(self.v(x_BTD)).reshape(batch, time, heads, self.value_size)
        q_BTHK, k_BTHK = context.hook("hook_q", q_BTHK), context.hook("hook_k", k_BTHK)
        v_BTHV = context.hook("hook_v", v_BTHV)
        # With 1 appended to every value, the memory's last column is the normaliser n.
        v_BTHV = jnp.concatenate([v_BTHV, jnp.ones_like(v_BTHV[..., :1])], axis=-1)
        o_BTHV, memory = ops.gated_linear(
            q_BTHK,
            at_least_float32(k_BTHK) * write_BTH[..., None],
            v_BTHV,
            context.hook("hook_log_decay_stabilized", log_decay_BTH),
            segment_ids=ids_BT,
            scale=self.key_size**-0.5,
            initial_state=before,
            return_state=True,
        )
        valid_BTH1 = valid_BT1[..., None] & jnp.isfinite(o_BTHV[..., -1:])
        floor_BTH1 = jnp.where(valid_BTH1, jnp.exp(-m_BTH)[..., None], 1)
        normalizer_BTH1 = jnp.maximum(jnp.abs(o_BTHV[..., -1:]), floor_BTH1) + NORMALIZER_EPS
        normalizer_BTH1 = context.hook("hook_normalizer", normalizer_BTH1)
        h_BTHV = context.hook("hook_recurrence_out", o_BTHV[..., :-1])
        h_BTHV = self.norm(h_BTHV, normalizer_BTH1).astype(x_BTD.dtype)
        gate = jax.nn.sigmoid(context.hook("hook_gate_input", self.output_gate(x_BTD), heads))
        y_BTD = self.out(gate * h_BTHV.reshape(batch, time, -1))
        return y_BTD, MLSTMState(memory, m_BTH[:, -1])


class Gate(nnx.Module):
    """cap * tanh((x W + b) / cap), one number a head, float32; W starts at 0."""

    def __init__(self, width: int, bias_H: jax.Array, soft_cap: float, *, rngs: nnx.Rngs):
        self.proj = Linear(width, bias_H.shape[0], ("embed", "heads"), rngs=rngs, scale=0.0)
        self.bias = nnx.Param(bias_H, axes=("heads",))
        self.soft_cap = soft_cap

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        raw_BTH = at_least_float32(self.proj(x_BTD)) + self.bias[...][None, None]
        return self.soft_cap * jnp.tanh(raw_BTH / self.soft_cap)


class HeadLayerNorm(nnx.Module):
    """(h - mean) / std of each head's h = x / d, and one learned scale a channel; statistics in float32.

    d counts only beside eps: the variance of x / d plus eps is, over d^2, that of x plus eps d^2. The
    gradient to d is computed so. Through the quotient it would be -(dh . h) / d, a sum that cancels:
    where q is almost orthogonal to n, h is large, and float32 left an error of 4e-5 of all gradients.
    """

    def __init__(self, heads: int, size: int, eps: float):
        self.scale = nnx.Param(jnp.ones((heads, size)), axes=("heads", "norm"))
        self.eps = eps

    def __call__(self, x_BTHV: jax.Array, d_BTH1: jax.Array) -> jax.Array:
        constant_BTH1 = jax.lax.stop_gradient(d_BTH1)
        x = at_least_float32(x_BTHV / constant_BTH1)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        eps = self.eps * jnp.square(d_BTH1 / constant_BTH1)  # eps, with a gradient to d
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
        return (x * self.scale[...][None, None]).astype(x_BTHV.dtype)


def _stabilized_gates(
    input_BTH: jax.Array, forget_BTH: jax.Array, context: SequenceContext, state: MLSTMState
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(factor on keys, log decay, m) for the memory times exp(-m); eq. 15-16 of the xLSTM paper.

    m_t = max(log f_t + m_{t-1}, i_t), with m 0 before a document's first token (the published
    code's), keeps both exp(i_t - m_t) and the decay f_t exp(m_{t-1} - m_t) at most 1. m changes the
    mixer's output through `NORMALIZER_EPS` only. `hook_log_decay` is log f.
    """
    ids_BT = context.segment_ids_BT
    padding_BT1 = (ids_BT == 0)[..., None]
    starts_BT1 = segments.document_starts(ids_BT, state.memory.segment_ids_B)[..., None]
    # The running maximum would pass what is not finite to later documents. The op marks this one from
    # its keys and values, which come from the same input.
    finite_BTH = jnp.isfinite(input_BTH) & jnp.isfinite(forget_BTH) & ~padding_BT1
    input_BTH, forget_BTH = (jnp.where(finite_BTH, x, 0) for x in (input_BTH, forget_BTH))
    log_f_BTH = context.hook("hook_log_decay", jax.nn.log_sigmoid(forget_BTH))
    log_f_BTH = jnp.where(padding_BT1, 0, log_f_BTH)
    before_BH = jnp.where(starts_BT1[:, 0], 0, state.stabilizer_BH.astype(log_f_BTH.dtype))
    a_BTH = jnp.where(starts_BT1, RESET, log_f_BTH)
    b_BTH = jnp.where(starts_BT1, jnp.maximum(log_f_BTH, input_BTH), input_BTH)
    m_BTH, m_before_BTH = _running_maximum(a_BTH, b_BTH, before_BH)
    m_before_BTH = jnp.where(starts_BT1, 0, m_before_BTH)
    return jnp.exp(input_BTH - m_BTH), log_f_BTH + m_before_BTH - m_BTH, m_BTH


def _scan_maximum(
    a_BTH: jax.Array, b_BTH: jax.Array, before_BH: jax.Array, *, axis: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """(m_t, m_{t-1}) with m_t = max(a_t + m_{t-1}, b_t), starting from `before`.

    `axis` is the mesh axis that splits time, or None.
    """

    def then(first, second):
        """Composes two maps of the form m -> max(a + m, b), which gives a third."""
        (a1, b1), (a2, b2) = first, second
        return a1 + a2, jnp.maximum(b1 + a2, b2)

    a_BTH, b_BTH = jax.lax.associative_scan(then, (a_BTH, b_BTH), axis=1)
    if axis is not None:
        shards = jax.lax.all_gather(jnp.stack([a_BTH[:, -1], b_BTH[:, -1]]), axis)
        entering_BH = before_BH
        for index, (a_BH, b_BH) in enumerate(shards[:-1], start=1):
            entering_BH = jnp.maximum(a_BH + entering_BH, b_BH)
            before_BH = jnp.where(jax.lax.axis_index(axis) == index, entering_BH, before_BH)
    m_BTH = jnp.maximum(a_BTH + before_BH[:, None], b_BTH)
    return m_BTH, jnp.concatenate([before_BH[:, None], m_BTH[:, :-1]], axis=1)


_running_maximum = ops.per_shard(
    _scan_maximum, _scan_maximum, dict(a_BTH="BTH", b_BTH="BTH", before_BH="BH"), ("BTH", "BTH")
)

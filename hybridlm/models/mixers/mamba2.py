"""Mamba-2: a state-space layer whose decay is one number per head (SSD, arXiv 2405.21060)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear, ScaledLinear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.parts import ConvWidth, GatedRMSNorm, ShortConv, initial_dt_bias
from hybridlm.models.norms import at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import PositiveFloat, PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas import gated_linear
from kernels_pallas.causal_conv import ConvState


class StateSpaceConfig(MixerConfig):
    """Settings of a state-space mixer with `heads` of `head_dim`, or as many as `expand` gives.

    Its classes have the fields `heads`, `head_dim`, `groups` and `expand`.
    """

    def __post_init__(self):
        if self.heads is not None:
            self._check_groups(self.heads)

    def check_width(self, width: int) -> None:
        if self.heads is None:
            inner = self.expand * width
            require(
                inner % self.head_dim == 0,
                "head_dim",
                f"is {self.head_dim} and does not divide the inner width {inner}, which is"
                " expand * width: change it, or set heads",
            )
            self._check_groups(inner // self.head_dim)

    def _check_groups(self, heads: int) -> None:
        require(
            heads % self.groups == 0,
            "groups",
            f"is {self.groups} and does not divide the {heads} heads",
        )

    def head_count(self, width: int) -> int:
        return self.heads or self.expand * width // self.head_dim


@settings
class Mamba2Config(StateSpaceConfig):
    """Settings of the Mamba-2 mixer; its inner width is heads * head_dim.

    Attributes:
      heads: heads of the input x; None is expand * width // head_dim.
      head_dim: channels of a head (P).
      state_dim: size of B and C (N); a head's state is N x P numbers.
      groups: heads // groups heads share one B and C; the output's norm has as many parts.
      expand: inner width over the model's, where `heads` is None.
      conv_width: taps of the convolution over x, B and C.
      norm: RMSNorm of the output "after_gate", norm(y silu(z)), or "before_gate",
        norm(y) silu(z), or "none", y silu(z) (Falcon-H1's default).
      dt_limits: lowest and highest time step after the softplus; the lowest alone, or None for no
        limits.
      bias: True adds biases to all projections, "in" to those of the input, "out" to that of the
        output.
      conv_bias: whether the convolution has a bias.
      multipliers: factors on the projections of z, x, B, C and dt (Falcon-H1); None for none.
    """

    kind_name: ClassVar[str] = "mamba2"
    other_names: ClassVar[Mapping[str, str]] = {
        "ssd": "",
        "state_space_duality": "",
    }
    equation: ClassVar[str] = "h_t = exp(-A dt_t) h_{t-1} + dt_t B_t x_t^T, y_t = h_t^T C_t + D x_t"
    source: ClassVar[str] = "arXiv 2405.21060 sec. 7"
    operations: ClassVar[tuple[str, ...]] = ("causal_conv", "gated_linear")

    heads: PositiveInt | None = None
    head_dim: PositiveInt = 64
    state_dim: PositiveInt = 128
    groups: PositiveInt = 1
    expand: PositiveInt = 2
    conv_width: ConvWidth = 4
    norm: Literal["after_gate", "before_gate", "none"] = "after_gate"
    dt_limits: tuple[float, ...] | None = None
    bias: bool | Literal["in", "out"] = False
    conv_bias: bool = True
    multipliers: tuple[PositiveFloat, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.dt_limits is not None:
            limits = tuple(self.dt_limits)
            require(
                len(limits) in (1, 2) and 0 <= limits[0] and (*limits, math.inf)[1] > limits[0],
                "dt_limits",
                f"must be one or two numbers, 0 <= lowest < highest, not {list(limits)}",
            )
        require(
            self.multipliers is None or len(self.multipliers) == 5,
            "multipliers",
            f"must be 5 numbers, of z, x, B, C and dt, not {len(self.multipliers or ())}",
        )

    def head_counts(self, width: int) -> dict[str, int]:
        return {"heads": self.head_count(width), "groups": self.groups}

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Mamba2":
        return Mamba2(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        heads = self.head_count(width)
        inner, shared = heads * self.head_dim, 2 * self.groups * self.state_dim
        projections = 2 * width * (3 * inner + shared + heads)
        conv = 2 * self.conv_width * (inner + shared)
        update_and_readout = 4 * inner * self.state_dim
        return projections + conv + update_and_readout + 2 * inner  # the last is D x

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len
        inner = self.head_count(width) * self.head_dim
        convolved = inner + 2 * self.groups * self.state_dim
        return 4 * inner * self.state_dim + (self.conv_width - 1) * convolved * itemsize

    @property
    def mechanism(self) -> str:
        return f"Mamba-2, state {self.state_dim} x {self.head_dim} a head"


class Mamba2State(NamedTuple):
    """Last inputs of the convolutions over x and over (B, C), and the states h (float32)."""

    conv: ConvState
    shared_conv: ConvState
    memory: gated_linear.GatedLinearState


class Mamba2(Mixer):
    """out(norm(y silu(z))), y = ssm(silu(conv(x)), dt, B, C) + D x: the mixer of `Mamba2Config`.

    z, x, (B, C) and dt have a projection each instead of one for all, so that devices can split x
    and z by head while B and C, which heads share, stay whole.
    """

    def __init__(self, config: Mamba2Config, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, heads = spec.width, config.head_count(spec.width)
        inner, shared = heads * config.head_dim, 2 * config.groups * config.state_dim
        self.config = config
        self.heads = heads
        bias, factors = config.bias in (True, "in"), config.multipliers or (1.0,) * 5
        options = dict(rngs=rngs, bias=bias)
        self.gate = _linear(factors[:1], width, inner, ("embed", "heads"), **options)
        self.value = _linear(factors[1:2], width, inner, ("embed", "heads"), **options)
        self.shared = _linear(factors[2:4], width, shared, ("embed", "state"), **options)
        self.dt = _linear(factors[4:], width, heads, ("embed", "heads"), **options)
        self.out = Linear(
            inner,
            width,
            ("heads", "embed"),
            rngs=rngs,
            scale=spec.out_scale,
            bias=config.bias in (True, "out"),
        )
        taps, options = config.conv_width, dict(bias=config.conv_bias, activation="silu", rngs=rngs)
        self.conv = ShortConv(inner, taps, **options)
        self.shared_conv = ShortConv(shared, taps, axes=("state",), **options)
        self.dt_bias = nnx.Param(initial_dt_bias(rngs.params(), (heads,)), axes=("heads",))
        self.log_a = nnx.Param(_initial_log_a(rngs.params(), heads), axes=("heads",))
        self.skip = nnx.Param(jnp.ones(heads), axes=("heads",))
        self.norm = _output_norm(config, inner, spec.norm_eps)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> Mamba2State:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        config = self.config
        memory = gated_linear.empty_state(
            batch,
            self.heads,
            config.state_dim,
            config.head_dim,
            jnp.promote_types(dtype, jnp.float32),
        )
        conv, shared = (c.init_state(batch, dtype) for c in (self.conv, self.shared_conv))
        return Mamba2State(conv, shared, memory)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Mamba2State | None
    ) -> tuple[jax.Array, Mamba2State]:
        batch, time, _ = x_BTD.shape
        config, ids_BT = self.config, context.segment_ids_BT
        conv, shared_conv, memory = state or (None, None, None)
        u_BTI = context.hook("hook_v_pre_conv", self.value(x_BTD), self.heads)
        u_BTI, conv = self.conv(u_BTI, ids_BT, conv)
        shared = context.hook("hook_kq_pre_conv", self.shared(x_BTD), 2 * config.groups)
        shared, shared_conv = self.shared_conv(shared, ids_BT, shared_conv)
        v_BTHV = at_least_float32(u_BTI).reshape(batch, time, self.heads, config.head_dim)
        v_BTHV = context.hook("hook_v", v_BTHV)
        shared = shared.reshape(batch, time, 2 * config.groups, config.state_dim)
        k_BTGK, q_BTGK = jnp.split(shared, 2, axis=2)
        dt_BTH, log_decay_BTH = self._steps(x_BTD, context)
        y_BTHV, memory = ops.gated_linear(
            context.hook("hook_q", q_BTGK),
            context.hook("hook_k", k_BTGK),
            dt_BTH[..., None] * v_BTHV,
            context.hook("hook_log_decay", log_decay_BTH),
            segment_ids=ids_BT,
            initial_state=memory,
            return_state=True,
        )
        y_BTHV = context.hook("hook_recurrence_out", y_BTHV)
        y_BTHV = y_BTHV + self.skip[...][None, None, :, None] * v_BTHV
        y_BTI = y_BTHV.reshape(batch, time, -1)
        gate_BTI = context.hook("hook_gate_input", self.gate(x_BTD), self.heads)
        y_BTI = self.norm(y_BTI, gate_BTI)
        y_BTD = self.out(y_BTI.astype(x_BTD.dtype))
        return y_BTD, Mamba2State(conv, shared_conv, memory)

    def _steps(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """Time steps dt, and the logarithm -A dt of the decay over each, float32."""
        raw_BTH = at_least_float32(self.dt(x_BTD))
        dt_BTH = jax.nn.softplus(raw_BTH + self.dt_bias[...][None, None])
        if self.config.dt_limits is not None:
            dt_BTH = jnp.clip(dt_BTH, *self.config.dt_limits)
        dt_BTH = context.hook("hook_dt", dt_BTH)
        return dt_BTH, -jnp.exp(self.log_a[...])[None, None] * dt_BTH


class SiluGate(nnx.Module):
    """y * silu(gate): the output without a norm."""

    def __call__(self, y: jax.Array, gate: jax.Array) -> jax.Array:
        return y * jax.nn.silu(at_least_float32(gate)).astype(y.dtype)


def _output_norm(config: Mamba2Config, inner: int, eps: float) -> nnx.Module:
    if config.norm == "none":
        return SiluGate()
    return GatedRMSNorm(
        inner, eps, norm_last=config.norm == "after_gate", groups=config.groups, axes=("heads",)
    )


def _linear(factors: tuple[float, ...], *sizes: Any, **options: Any) -> Linear:
    """A linear map, with factors on equal parts of its output where one is not 1."""
    if all(factor == 1 for factor in factors):
        return Linear(*sizes, **options)
    return ScaledLinear(*sizes, factors=factors, **options)


def _initial_log_a(key: jax.Array, heads: int, low: float = 1.0, high: float = 16.0) -> jax.Array:
    """log A with A uniform in [low, high] (the published code's A_init_range)."""
    return jnp.log(jax.random.uniform(key, (heads,), minval=low, maxval=high))

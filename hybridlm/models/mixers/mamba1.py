"""Mamba: a selective state space whose every channel has a state of its own (arXiv 2312.00752)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Identity, Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.parts import ConvWidth, ShortConv, initial_dt_bias
from hybridlm.models.norms import RMSNorm, UnitRMS, at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import Epsilon, PositiveInt, settings
from kernels_pallas import selective_scan
from kernels_pallas.causal_conv import ConvState


@settings
class Mamba1Config(MixerConfig):
    """Settings of the Mamba (Mamba-1) mixer: no heads, one decay per channel and entry of its state.

    Attributes:
      inner: channels; None is expand * width.
      expand: channels over the model's width, where `inner` is None.
      state_dim: entries of a channel's state (N).
      dt_rank: rank of the projection to the time steps; None is width / 16, rounded up.
      conv_width: taps of the convolution over x.
      norm: RMSNorm of the low-rank time step, of B and of C: "none", "rmsnorm" with a learned scale
        (Jamba), or "unscaled" (Falcon-Mamba).
      norm_eps: epsilon of these norms; None is the model's.
      bias: whether the projections of the input and of the output have biases.
      conv_bias: whether the convolution has a bias.
    """

    kind_name: ClassVar[str] = "mamba1"
    other_names: ClassVar[Mapping[str, str]] = {
        "mamba": "",
        "s6": "",
        "selective_ssm": "",
        "jamba": "norm='rmsnorm'",
        "falcon_mamba": "norm='unscaled'",
    }
    equation: ClassVar[str] = "h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t"
    source: ClassVar[str] = "arXiv 2312.00752 sec. 3"
    operations: ClassVar[tuple[str, ...]] = ("causal_conv", "selective_scan")

    inner: PositiveInt | None = None
    expand: PositiveInt = 2
    state_dim: PositiveInt = 16
    dt_rank: PositiveInt | None = None
    conv_width: ConvWidth = 4
    norm: Literal["none", "rmsnorm", "unscaled"] = "none"
    norm_eps: Epsilon | None = None
    bias: bool = False
    conv_bias: bool = True

    def channels(self, width: int) -> int:
        return self.inner or self.expand * width

    def rank(self, width: int) -> int:
        return self.dt_rank or -(-width // 16)

    def head_counts(self, width: int) -> dict[str, int]:
        name = "inner" if self.inner else "expand * model.width"
        return {f"channels ({name})": self.channels(width)}  # every channel is a head of its own

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Mamba1":
        return Mamba1(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        inner, rank = self.channels(width), self.rank(width)
        projections = 2 * 3 * width * inner + 2 * inner * (2 * rank + 2 * self.state_dim)
        update_and_readout = 4 * inner * self.state_dim
        return projections + 2 * inner * self.conv_width + update_and_readout + 2 * inner

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len
        return self.channels(width) * (4 * self.state_dim + (self.conv_width - 1) * itemsize)

    @property
    def mechanism(self) -> str:
        return f"Mamba, state {self.state_dim} a channel"


class Mamba1State(NamedTuple):
    """Last inputs of the convolution, and the states h (float32)."""

    conv: ConvState
    memory: selective_scan.SelectiveScanState


class Mamba1(Mixer):
    """out(y silu(z)), y = scan(u, dt, A, B, C) + D u, u = silu(conv(x)): the mixer of `Mamba1Config`.

    z and x have a projection each instead of one for both, and so have the low-rank time step and
    (B, C): devices split the channels, and (B, C), which channels share, stay whole.
    """

    def __init__(self, config: Mamba1Config, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, size = spec.width, config.state_dim
        inner, rank = config.channels(width), config.rank(width)
        self.config = config
        options = dict(rngs=rngs, bias=config.bias)
        self.gate = Linear(width, inner, ("embed", "heads"), **options)
        self.value = Linear(width, inner, ("embed", "heads"), **options)
        self.out = Linear(inner, width, ("heads", "embed"), scale=spec.out_scale, **options)
        self.conv = ShortConv(
            inner, config.conv_width, bias=config.conv_bias, activation="silu", rngs=rngs
        )
        self.dt_down = Linear(inner, rank, ("heads", "state"), rngs=rngs)
        self.shared = Linear(inner, 2 * size, ("heads", "state"), rngs=rngs)
        self.dt_up = Linear(rank, inner, ("state", "heads"), rngs=rngs)
        # Uniform in rank^-0.5 [-1, 1], as published: a third of the variance of other projections.
        self.dt_up.kernel[...] = jax.random.uniform(
            rngs.params(), (rank, inner), minval=-(rank**-0.5), maxval=rank**-0.5
        )
        self.dt_bias = nnx.Param(initial_dt_bias(rngs.params(), (inner,)), axes=("heads",))
        self.log_a = nnx.Param(_initial_log_a(inner, size), axes=("heads", "state"))
        self.skip = nnx.Param(jnp.ones(inner), axes=("heads",))
        eps = config.norm_eps or spec.norm_eps
        self.dt_norm = _norm(config.norm, rank, eps)
        self.b_norm, self.c_norm = (_norm(config.norm, size, eps) for _ in range(2))

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> Mamba1State:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        memory_dtype = jnp.promote_types(dtype, jnp.float32)
        memory = selective_scan.empty_state(batch, *self.log_a[...].shape, memory_dtype)
        return Mamba1State(self.conv.init_state(batch, dtype), memory)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Mamba1State | None
    ) -> tuple[jax.Array, Mamba1State]:
        ids_BT = context.segment_ids_BT
        conv, memory = state or (None, None)
        u_BTI = context.hook("hook_v_pre_conv", self.value(x_BTD))
        u_BTI, conv = self.conv(u_BTI, ids_BT, conv)
        u_BTI = context.hook("hook_conv_out", u_BTI)
        b_BTN, c_BTN = jnp.split(self.shared(u_BTI), 2, axis=-1)
        inputs_BTI = context.hook("hook_v", at_least_float32(u_BTI))
        y_BTI, memory = ops.selective_scan(
            inputs_BTI,
            context.hook("hook_dt", self._steps(u_BTI)),
            context.hook("hook_a", -jnp.exp(self.log_a[...])),
            context.hook("hook_k", self.b_norm(b_BTN)),
            context.hook("hook_q", self.c_norm(c_BTN)),
            segment_ids=ids_BT,
            initial_state=memory,
            return_state=True,
        )
        y_BTI = context.hook("hook_recurrence_out", y_BTI)
        y_BTI = y_BTI + self.skip[...][None, None] * inputs_BTI
        gate_BTI = context.hook("hook_gate_input", self.gate(x_BTD))
        y_BTI = y_BTI * jax.nn.silu(at_least_float32(gate_BTI))
        return self.out(y_BTI.astype(x_BTD.dtype)), Mamba1State(conv, memory)

    def _steps(self, u_BTI: jax.Array) -> jax.Array:
        """Time steps dt, float32."""
        raw_BTI = at_least_float32(self.dt_up(self.dt_norm(self.dt_down(u_BTI))))
        return jax.nn.softplus(raw_BTI + self.dt_bias[...][None, None])


def _norm(kind: str, size: int, eps: float) -> Any:
    if kind == "none":
        return Identity()
    return RMSNorm(size, eps) if kind == "rmsnorm" else UnitRMS(eps)


def _initial_log_a(inner: int, size: int) -> jax.Array:
    """log of 1, 2, ..., N in every channel: S4D's real initialisation, with A = -exp of it."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1.0, size + 1)), (inner, size))

"""Mamba-3: trapezoidal discretisation, complex states, several inputs a token (arXiv 2603.15569)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers import trapezoid
from hybridlm.models.mixers.base import LayerSpec, Mixer, SequenceContext
from hybridlm.models.mixers.mamba2 import StateSpaceConfig
from hybridlm.models.mixers.parts import GatedRMSNorm, initial_dt_bias
from hybridlm.models.mixers.trapezoid import TrapezoidState
from hybridlm.models.norms import RMSNorm, at_least_float32
from hybridlm.settings.bounds import Between, PositiveFloat, PositiveInt, settings


@settings
class Mamba3Config(StateSpaceConfig):
    """Settings of the Mamba-3 mixer; its inner width is heads * head_dim.

    Attributes:
      heads: heads of the input x; None is expand * width // head_dim.
      head_dim: channels of a head (P).
      state_dim: size of B and C (N); a head's state is N x P numbers.
      groups: projections of B and C, each shared by heads // groups heads, which add biases of their own.
      expand: inner width over the model's, where `heads` is None.
      rank: inputs and outputs a token (MIMO); 1 is SISO. The state does not grow, the work does.
      rope_fraction: share of a state's rows that rotate, in pairs; 0 is a real state.
      decay_floor: lowest -A of the decay exp(A dt).
      norm: RMSNorm of each head's output before the gate, norm(y) silu(z), instead of y silu(z).
    """

    kind_name: ClassVar[str] = "mamba3"
    equation: ClassVar[str] = (
        "h_t = a_t R_t (h_{t-1} + (1 - l_t) dt_t B_{t-1} x_{t-1}^T) + l_t dt_t B_t x_t^T,"
        " y_t = h_t^T C_t + D x_t"
    )
    source: ClassVar[str] = "arXiv 2603.15569 sec. 3"
    operations: ClassVar[tuple[str, ...]] = ("gated_linear", "linear_recurrence")
    other_names: ClassVar[Mapping[str, str]] = {
        "mamba3_siso": "",
        "mamba3_mimo": "rank=... (inputs a token)",
    }

    heads: PositiveInt | None = None
    head_dim: PositiveInt = 64
    state_dim: PositiveInt = 128
    groups: PositiveInt = 1
    expand: PositiveInt = 2
    rank: PositiveInt = 1
    rope_fraction: Annotated[float, Between(0, 1)] = 0.5
    decay_floor: PositiveFloat = 1e-4
    norm: bool = False

    @property
    def angles(self) -> int:
        """Pairs of rows of a state that rotate."""
        return int(self.state_dim * self.rope_fraction) // 2

    def head_counts(self, width: int) -> dict[str, int]:
        return {"heads": self.head_count(width)}

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Mamba3":
        return Mamba3(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        heads, rank, size = self.head_count(width), self.rank, self.state_dim + self.head_dim
        inner, shared = heads * self.head_dim, 2 * self.groups * rank * self.state_dim
        projections = 2 * width * (3 * inner + shared + 3 * heads + self.angles)
        update_and_readout = 4 * inner * self.state_dim * rank
        own_token = 2 * heads * rank * rank * size
        token_before = 2 * heads * (rank * (rank - 1) // 2) * size
        ranks = 6 * inner * rank if rank > 1 else 0  # x, z and y of each rank
        skip = 2 * inner * rank
        return projections + update_and_readout + own_token + token_before + ranks + skip

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len, itemsize
        heads, size = self.head_count(width), self.state_dim + self.head_dim
        return 4 * heads * (self.state_dim * self.head_dim + self.rank * size + 1)

    @property
    def mechanism(self) -> str:
        return f"Mamba-3, state {self.state_dim} x {self.head_dim} a head, rank {self.rank}"


#: The names of what `_steps` returns.
STEPS = ("log_decay", "dt", "weight", "angle")


class Mamba3(Mixer):
    """out(y silu(z)), y = ssm(x, dt, B, C) + D x: the mixer of `Mamba3Config`.

    B and C are normed, and each head adds a bias to them; both biases start at 1. There is no short
    convolution: the trapezoidal rule reads the token before. As in the published code A, dt, the weight l
    and the angles are functions of the token: A = -softplus, l = sigmoid, and the angles, which heads share,
    are pi tanh times the head's dt. With a rank, x, z and y have a factor for each head, rank and channel:
    1/R, 1 and 1/R at first.
    """

    def __init__(self, config: Mamba3Config, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, heads = spec.width, config.head_count(spec.width)
        inner, size = heads * config.head_dim, config.state_dim
        shared = config.groups * config.rank * size
        self.config, self.heads = config, heads
        self.gate = Linear(width, inner, ("embed", "heads"), rngs=rngs)
        self.value = Linear(width, inner, ("embed", "heads"), rngs=rngs)
        self.key = Linear(width, shared, ("embed", "state"), rngs=rngs)
        self.query = Linear(width, shared, ("embed", "state"), rngs=rngs)
        self.dt = Linear(width, heads, ("embed", "heads"), rngs=rngs)
        self.decay = Linear(width, heads, ("embed", "heads"), rngs=rngs)
        self.weight = Linear(width, heads, ("embed", "heads"), rngs=rngs)
        self.angle = (
            Linear(width, config.angles, ("embed", "state"), rngs=rngs) if config.angles else None
        )
        self.out = Linear(inner, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)
        self.key_norm = RMSNorm(size, spec.norm_eps)
        self.query_norm = RMSNorm(size, spec.norm_eps)
        bias = jnp.ones((heads, config.rank, size))
        self.key_bias = nnx.Param(bias, axes=("heads", "rank", "state"))
        self.query_bias = nnx.Param(bias, axes=("heads", "rank", "state"))
        self.dt_bias = nnx.Param(initial_dt_bias(rngs.params(), (heads,)), axes=("heads",))
        self.skip = nnx.Param(jnp.ones(heads), axes=("heads",))
        self.ranks = Ranks(heads, config.rank, config.head_dim) if config.rank > 1 else OneRank()
        self.norm = GatedRMSNorm(config.head_dim, spec.norm_eps) if config.norm else Gate()

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> TrapezoidState:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        config, dtype = self.config, jnp.promote_types(dtype, jnp.float32)
        return trapezoid.empty_state(
            batch, self.heads, config.rank, config.state_dim, config.head_dim, dtype
        )

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: TrapezoidState | None
    ) -> tuple[jax.Array, TrapezoidState]:
        shape = *x_BTD.shape[:2], self.heads, self.config.head_dim
        v_BTHP = at_least_float32(self.value(x_BTD)).reshape(shape)
        x_BTHRP = self.ranks.inputs(context.hook("hook_v", v_BTHP))
        c_BTHRN = self._shared(self.query, self.query_norm, self.query_bias, x_BTD)
        b_BTHRN = self._shared(self.key, self.key_norm, self.key_bias, x_BTD)
        inputs = trapezoid.Inputs(
            context.hook("hook_q", c_BTHRN),
            context.hook("hook_k", b_BTHRN),
            x_BTHRP,
            *(
                context.hook(f"hook_{name}", x)
                for name, x in zip(STEPS, self._steps(x_BTD), strict=True)
            ),
        )
        y_BTHRP, state = trapezoid.trapezoid(inputs, context.segment_ids_BT, state)
        y_BTHRP = self._named_output(y_BTHRP, context)
        y_BTHRP += self.skip[...][None, None, :, None, None] * x_BTHRP
        gate_BTI = context.hook("hook_gate_input", self.gate(x_BTD), self.heads)
        z_BTHRP = self.ranks.gates(at_least_float32(gate_BTI).reshape(shape))
        y_BTHP = self.ranks.outputs(self.norm(y_BTHRP, z_BTHRP))
        return self.out(y_BTHP.reshape(*shape[:2], -1).astype(x_BTD.dtype)), state

    def _named_output(self, y_BTHRP: jax.Array, context: SequenceContext) -> jax.Array:
        """The recurrence's output, whose name is of (B, T, H R, P): each rank is a head."""
        if context.hooks is None:
            return y_BTHRP
        flat = y_BTHRP.reshape(*y_BTHRP.shape[:2], -1, y_BTHRP.shape[-1])
        return context.hook("hook_recurrence_out", flat).reshape(y_BTHRP.shape)

    def _shared(self, project: Linear, norm: RMSNorm, bias: nnx.Param, x_BTD: jax.Array):
        """C or B of every head: (B, T, H, R, N)."""
        config = self.config
        shape = *x_BTD.shape[:2], config.rank, config.groups, config.state_dim
        normed_BTRGN = norm(project(x_BTD).reshape(shape))
        each_BTHRN = jnp.repeat(
            jnp.swapaxes(normed_BTRGN, 2, 3), self.heads // config.groups, axis=2
        )
        return (at_least_float32(each_BTHRN) + bias[...][None, None]).astype(x_BTD.dtype)

    def _steps(self, x_BTD: jax.Array) -> tuple[jax.Array, ...]:
        """log a, dt, l (B, T, H) and the angles (B, T, H, F), in at least float32."""
        dt_BTH = jax.nn.softplus(at_least_float32(self.dt(x_BTD)) + self.dt_bias[...][None, None])
        a_BTH = jax.nn.softplus(at_least_float32(self.decay(x_BTD)))
        log_decay_BTH = -jnp.maximum(a_BTH, self.config.decay_floor) * dt_BTH
        weight_BTH = jax.nn.sigmoid(at_least_float32(self.weight(x_BTD)))
        angle_BT1F = jnp.zeros((*dt_BTH.shape[:2], 1, 0), dt_BTH.dtype)
        if self.angle is not None:
            angle_BT1F = jnp.pi * jnp.tanh(at_least_float32(self.angle(x_BTD)))[:, :, None]
        return log_decay_BTH, dt_BTH, weight_BTH, angle_BT1F * dt_BTH[..., None]


class OneRank(nnx.Module):
    """One input and one output a token."""

    def inputs(self, x_BTHP: jax.Array) -> jax.Array:
        return x_BTHP[:, :, :, None]

    def gates(self, z_BTHP: jax.Array) -> jax.Array:
        return z_BTHP[:, :, :, None]

    def outputs(self, y_BTHRP: jax.Array) -> jax.Array:
        return y_BTHRP[:, :, :, 0]


class Ranks(nnx.Module):
    """R inputs and outputs a token: x, z and y times a factor for each head, rank and channel."""

    def __init__(self, heads: int, rank: int, size: int):
        ones, axes = jnp.ones((heads, rank, size)), ("heads", "rank", "channel")
        self.x = nnx.Param(ones / rank, axes=axes)
        self.z = nnx.Param(ones, axes=axes)
        self.y = nnx.Param(ones / rank, axes=axes)

    def inputs(self, x_BTHP: jax.Array) -> jax.Array:
        return x_BTHP[:, :, :, None] * self.x[...][None, None]

    def gates(self, z_BTHP: jax.Array) -> jax.Array:
        return z_BTHP[:, :, :, None] * self.z[...][None, None]

    def outputs(self, y_BTHRP: jax.Array) -> jax.Array:
        return jnp.sum(y_BTHRP * self.y[...][None, None], axis=3)


class Gate(nnx.Module):
    """y * silu(z)."""

    def __call__(self, y: jax.Array, z: jax.Array) -> jax.Array:
        return y * jax.nn.silu(z)

"""The layer of DeltaNet, Gated DeltaNet and Kimi Delta Attention, without decay and output.

x -> q, k, v -> short convolutions and silu -> q, k normalised -> delta rule -> output norm -> out.
Gated DeltaNet-2 and Gated DeltaProduct replace the gates of the update (`build_update`, `update`).
"""

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.parts import (
    L2_EPS,
    GatedRMSNorm,
    ShortConv,
    initial_dt_bias,
    l2_normalize,
)
from hybridlm.models.norms import RMSNorm, at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import settings
from hybridlm.settings.reader import require
from kernels_pallas import delta_rule
from kernels_pallas.causal_conv import ConvState


class Sizes(NamedTuple):
    """Numbers and sizes of heads; `value_heads // heads` value heads share a query/key head."""

    heads: int
    value_heads: int
    key_size: int
    value_size: int

    @property
    def keys(self) -> int:
        return self.heads * self.key_size

    @property
    def values(self) -> int:
        return self.value_heads * self.value_size


@settings
class DeltaConfig(MixerConfig):
    """Base of the mixers' settings; each defines its sizes, decay, output and their costs."""

    name: ClassVar[str]

    def check_width(self, width: int) -> None:
        require(
            self.head_dim is not None or width % self.heads == 0,
            "heads",
            f"is {self.heads} and does not divide model.width {width}: set head_dim",
        )

    @abc.abstractmethod
    def sizes(self, width: int) -> Sizes:
        """Heads and their sizes in a model of `width`."""

    @abc.abstractmethod
    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Delta":
        """The mixer's module."""

    def updates_per_token(self) -> int:
        """Updates of the state per token, each with a key and a value of its own."""
        return 1

    def convolved(self, sizes: Sizes) -> int:
        """Channels of q, k and v."""
        return sizes.keys + self.updates_per_token() * (sizes.keys + sizes.values)

    def update_gates(self, sizes: Sizes) -> int:
        """Numbers per token that say how strongly the state is erased and written."""
        return sizes.value_heads

    @abc.abstractmethod
    def gate_flops(self, width: int) -> int:
        """FLOPs per token of the projections to the decay and the output gate."""

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        sizes = self.sizes(width)
        convolved = self.convolved(sizes)
        projections = 2 * width * (convolved + self.update_gates(sizes) + sizes.values)
        # Per value head: for each update reading S at k and writing the correction; reading S at q.
        state = (2 * self.updates_per_token() + 1) * 2 * sizes.key_size * sizes.values
        return projections + self.gate_flops(width) + 2 * self.conv_width * convolved + state

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len
        sizes = self.sizes(width)
        convolved = self.convolved(sizes)
        return 4 * sizes.key_size * sizes.values + (self.conv_width - 1) * convolved * itemsize

    @property
    def mechanism(self) -> str:
        return f"{self.name}, conv {self.conv_width}"


class SharedKeysConfig(DeltaConfig):
    """Settings of a mixer whose `value_heads` are a multiple of `heads`, or None for as many."""

    def __post_init__(self):
        value_heads = self.heads if self.value_heads is None else self.value_heads
        require(
            value_heads % self.heads == 0,
            "value_heads",
            f"is {value_heads} and must be a multiple of heads {self.heads}, or None",
        )
        object.__setattr__(self, "value_heads", value_heads)


class DeltaState(NamedTuple):
    """The convolutions' last inputs and the delta rule's S (float32)."""

    q_conv: ConvState
    k_conv: ConvState
    v_conv: ConvState
    recurrence: delta_rule.DeltaRuleState


class Delta(Mixer):
    """The mixer of a `DeltaConfig`, with the decay and output modules that its kind builds.

    `decay(x_BTD)` returns the log decay, (B, T, H), (B, T, H, K) or None; `output(o_BTHV, x_BTD, context)`
    returns o after its norm and gate.
    """

    def __init__(
        self,
        config: DeltaConfig,
        spec: LayerSpec,
        decay: nnx.Module,
        output: nnx.Module,
        *,
        rngs: nnx.Rngs,
    ):
        width, sizes = spec.width, config.sizes(spec.width)
        self.config = config
        self.sizes = sizes
        keys, values = (config.updates_per_token() * n for n in (sizes.keys, sizes.values))
        self.q = Linear(width, sizes.keys, ("embed", "kv_heads"), rngs=rngs)
        self.k = Linear(width, keys, ("embed", "kv_heads"), rngs=rngs)
        self.v = Linear(width, values, ("embed", "heads"), rngs=rngs)
        self.build_update(width, rngs)
        self.out = Linear(sizes.values, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)
        options = dict(activation="silu", rngs=rngs)
        self.q_conv = ShortConv(sizes.keys, config.conv_width, **options)
        self.k_conv = ShortConv(keys, config.conv_width, **options)
        self.v_conv = ShortConv(values, config.conv_width, **options)
        self.decay = decay
        self.output = output
        self.largest_beta = 2.0 if config.negative_eigenvalues else 1.0

    def build_update(self, width: int, rngs: nnx.Rngs) -> None:
        """Makes the projections that `update` reads besides q, k and v."""
        self.beta = Linear(width, self.sizes.value_heads, ("embed", "heads"), rngs=rngs)

    def update(
        self,
        x_BTD: jax.Array,
        context: SequenceContext,
        q_BTI: jax.Array,
        k_BTI: jax.Array,
        v_BTI: jax.Array,
        **options: Any,
    ) -> tuple[jax.Array, delta_rule.DeltaRuleState]:
        """The delta rule on the convolved q, k and v, heads side by side; `options` are its own."""
        beta_BTH = self.largest_beta * jax.nn.sigmoid(at_least_float32(self.beta(x_BTD)))
        beta_BTH = context.hook("hook_beta", beta_BTH)
        inputs = self.keys(q_BTI), self.keys(k_BTI), self.values(v_BTI), beta_BTH
        log_decay = self.log_decay(x_BTD, context)
        # The op gives q and k length 1: its kernel does so without passes over memory.
        return ops.delta_rule(*inputs, log_decay, unit_eps=L2_EPS, **options)

    def keys(self, x_BTI: jax.Array) -> jax.Array:
        """Queries or keys (B, T, heads, K)."""
        return x_BTI.reshape(*x_BTI.shape[:2], -1, self.sizes.key_size)

    def normed(self, x_BTI: jax.Array) -> jax.Array:
        """Queries or keys (B, T, heads, K) of length 1."""
        return l2_normalize(self.keys(x_BTI))

    def values(self, v_BTI: jax.Array) -> jax.Array:
        """Values (B, T, heads, V)."""
        return v_BTI.reshape(*v_BTI.shape[:2], -1, self.sizes.value_size)

    def log_decay(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array | None:
        """The output of `decay`."""
        log_decay = self.decay(x_BTD)
        return None if log_decay is None else context.hook("hook_log_decay", log_decay)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> DeltaState:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        sizes = self.sizes
        return DeltaState(
            self.q_conv.init_state(batch, dtype),
            self.k_conv.init_state(batch, dtype),
            self.v_conv.init_state(batch, dtype),
            delta_rule.empty_state(
                batch,
                sizes.value_heads,
                sizes.key_size,
                sizes.value_size,
                jnp.promote_types(dtype, jnp.float32),
            ),
        )

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: DeltaState | None
    ) -> tuple[jax.Array, DeltaState]:
        ids_BT = context.segment_ids_BT
        state = state or DeltaState(None, None, None, None)
        q_BTI, q_conv = self._convolved("q", x_BTD, context, state.q_conv)
        k_BTI, k_conv = self._convolved("k", x_BTD, context, state.k_conv)
        v_BTI, v_conv = self._convolved("v", x_BTD, context, state.v_conv)
        o_BTHV, recurrence = self.update(
            x_BTD,
            context,
            q_BTI,
            k_BTI,
            v_BTI,
            segment_ids=ids_BT,
            initial_state=state.recurrence,
            return_state=True,
        )
        o_BTHV = self.output(context.hook("hook_recurrence_out", o_BTHV), x_BTD, context)
        y_BTD = self.out(o_BTHV.reshape(*x_BTD.shape[:2], -1))
        return y_BTD, DeltaState(q_conv, k_conv, v_conv, recurrence)

    def _convolved(
        self, name: str, x_BTD: jax.Array, context: SequenceContext, state: ConvState | None
    ) -> tuple[jax.Array, ConvState]:
        """silu(conv(project(x))) of q, k or v, heads side by side, and the convolution's state."""
        project, conv = getattr(self, name), getattr(self, f"{name}_conv")
        heads = self.sizes.value_heads if name == "v" else self.sizes.heads
        heads *= 1 if name == "q" else self.config.updates_per_token()
        y_BTI = context.hook(f"hook_{name}_pre_conv", project(x_BTD), heads)
        y_BTI, state = conv(y_BTI, context.segment_ids_BT, state)
        return context.hook(f"hook_{name}", y_BTI, heads), state


class NoDecay(nnx.Module):
    """a = 1: DeltaNet forgets only by overwriting."""

    def __call__(self, x_BTD: jax.Array) -> None:
        return None


class HeadDecay(nnx.Module):
    """log a = -exp(A_log) softplus(W x + dt_bias), one per head (Mamba-2's gate)."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.proj = Linear(width, heads, ("embed", "heads"), rngs=rngs)
        self.a_log = nnx.Param(initial_a_log(rngs.params(), heads, 0.0), axes=("heads",))
        self.dt_bias = nnx.Param(initial_dt_bias(rngs.params(), (heads,)), axes=("heads",))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        dt_BTH = at_least_float32(self.proj(x_BTD)) + self.dt_bias[...][None, None]
        return -jnp.exp(self.a_log[...])[None, None] * jax.nn.softplus(dt_BTH)


def initial_a_log(key: jax.Array, heads: int, low: float, high: float = 16.0) -> jax.Array:
    """log A with A uniform in [low, high]; low is at least 0.01, as log 0 is not finite."""
    return jnp.log(jax.random.uniform(key, (heads,), minval=max(low, 1e-2), maxval=high))


class LowRank(nnx.Module):
    """x -> W2 W1 x, and with `bias` + b, over a hidden size `rank`."""

    def __init__(self, width: int, rank: int, size: int, *, rngs: nnx.Rngs, bias: bool = False):
        self.down = Linear(width, rank, ("embed", "rank"), rngs=rngs)
        self.up = Linear(rank, size, ("rank", "heads"), rngs=rngs, bias=bias)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.up(self.down(x_BTD))


class HeadNorm(nnx.Module):
    """RMSNorm of each head's output, with one scale for all heads."""

    def __init__(self, size: int, eps: float):
        self.norm = RMSNorm(size, eps)

    def __call__(self, o_BTHV: jax.Array, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.norm(o_BTHV)


class GatedHeadNorm(nnx.Module):
    """rmsnorm(o) * act(gate(x)) in each head, with one scale for all heads."""

    def __init__(self, size: int, eps: float, gate: nnx.Module, act):
        self.gate = gate
        self.norm = GatedRMSNorm(size, eps, act=act)

    def __call__(self, o_BTHV: jax.Array, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        gate_BTHV = self.gate(x_BTD).reshape(o_BTHV.shape)
        return self.norm(o_BTHV, context.hook("hook_gate_input", gate_BTHV))

"""RWKV-7's time mixing (arXiv 2503.14456, sec. 3 and 4).

Initial values are those that the published training code writes before it trains
(`generate_init_weight` in RWKV-v7/train_temp of github.com/BlinkDL/RWKV-LM), which replaces the uniform
matrices of its constructors by orthogonal ones.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear, orthogonal_linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.parts import TokenShift, l2_normalize
from hybridlm.models.norms import along_last, at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import AtLeast, PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas import delta_rule
from kernels_pallas.causal_conv import ConvState
from kernels_pallas.delta_rule.product import delta_product

#: The arrays that go from layer to layer: the lowest rwkv7 layer's values, and 1 above that layer.
FIRST_VALUE, HAS_FIRST = "rwkv7_first_value", "rwkv7_has_first_value"
#: Log decays lie between minus this and 0.
STRONGEST_DECAY = math.exp(-0.5)
#: What each of the six mixtures of a token and the one before it is for, with its initial exponent.
SHIFTS = dict(r=0.2, w=0.9, k=0.7, v=0.7, a=0.9, g=0.2)


@settings
class RWKV7Config(MixerConfig):
    """RWKV-7: a delta rule that removes along one key and writes at another.

    Attributes:
      head_dim: size of the heads, which divides the model's width.
      decay_rank: rank of the map to the decay; None is 2.5 sqrt(width), in multiples of 32.
      rate_rank: rank of the map to the in-context learning rate; None is 2.5 sqrt(width) likewise.
      value_rank: rank of the map to the share of the first layer's value; None is 1.7 sqrt(width).
      gate_rank: rank of the output gate; None is 5 sqrt(width).
      value_residual: whether values are mixed with those of the lowest rwkv7 layer.
    """

    kind_name: ClassVar[str] = "rwkv7"
    other_names: ClassVar[Mapping[str, str]] = {
        "rwkv": "",
        "rwkv_7": "",
        "goose": "",
        "x070": "",
    }
    equation: ClassVar[str] = (
        "S_t = (Diag(w_t) - (a_t * c_t) c_t^T) S_{t-1} + k_t v_t^T, c_t = normalised key, o_t = S_t^T r_t"
    )
    source: ClassVar[str] = "arXiv 2503.14456 sec. 4"
    operations: ClassVar[tuple[str, ...]] = ("causal_conv", "delta_rule")

    head_dim: Annotated[int, AtLeast(2)] = 64
    decay_rank: PositiveInt | None = None
    rate_rank: PositiveInt | None = None
    value_rank: PositiveInt | None = None
    gate_rank: PositiveInt | None = None
    value_residual: bool = True

    def check_width(self, width: int) -> None:
        require(
            width % self.head_dim == 0,
            "head_dim",
            f"is {self.head_dim} and does not divide model.width {width}",
        )

    def head_counts(self, width: int) -> dict[str, int]:
        return {"heads (model.width / head_dim)": width // self.head_dim}

    def ranks(self, width: int) -> dict[str, int]:
        """The ranks of the four low-rank maps, by the letters of the published code."""

        def published(factor: float) -> int:
            return max(32, round(factor * width**0.5 / 32) * 32)

        ranks = dict(
            w=self.decay_rank or published(2.5),
            a=self.rate_rank or published(2.5),
            v=self.value_rank or published(1.7),
            g=self.gate_rank or published(5.0),
        )
        return ranks if self.value_residual else {n: x for n, x in ranks.items() if n != "v"}

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "RWKV7":
        return RWKV7(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        projections = 2 * width * (4 * width + 2 * sum(self.ranks(width).values()))
        # S is read at the key to remove and at r, changed by what is removed and by what is written.
        return projections + 4 * 2 * width * self.head_dim

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len
        return 4 * width * self.head_dim + width * itemsize

    def cross_layer(self, width: int, depth: int) -> dict[str, tuple[int, ...]]:
        return {FIRST_VALUE: (width,), HAS_FIRST: (1,)} if self.value_residual else {}

    @property
    def mechanism(self) -> str:
        return f"RWKV-7, heads of {self.head_dim}"


class RWKV7State(NamedTuple):
    """The last input and S (float32)."""

    shift: ConvState
    recurrence: delta_rule.DeltaRuleState


class RWKV7(Mixer):
    """The mixer of `RWKV7Config`.

    The maps to r, k and v start orthogonal with gains 1, 0.1 and 1, and out at 0; the scale of the heads'
    norm starts at ((index + 1) / depth)^0.7.
    """

    def __init__(self, config: RWKV7Config, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, ranks = spec.width, config.ranks(spec.width)
        self.config = config
        self.heads = width // config.head_dim
        start = Initial(spec, config.head_dim)
        self.shift = TokenShift(width)
        self.mix = nnx.Dict({n: channels(start.mix(power)) for n, power in SHIFTS.items()})
        self.r, self.k, self.v = (
            orthogonal_linear(width, width, ("embed", "heads"), gain, rngs=rngs)
            for gain in (1.0, 0.1, 1.0)
        )
        self.out = Linear(width, width, ("heads", "embed"), rngs=rngs)
        self.out.kernel[...] = jnp.zeros_like(self.out.kernel[...])
        self.decay = LowRankMap(width, ranks["w"], start.decay(), jnp.tanh, rngs=rngs)
        self.rate = LowRankMap(width, ranks["a"], start.rate(), rngs=rngs)
        if config.value_residual:
            self.value_share = LowRankMap(width, ranks["v"], start.value_share(), rngs=rngs)
        self.gate = LowRankMap(width, ranks["g"], None, jax.nn.sigmoid, rngs=rngs)
        self.removal_key = channels(0.71 - 0.1 * start.ramp)
        self.key_rate = channels(jnp.full(width, 1.02))
        self.bonus = channels(jnp.full(width, -0.04))
        self.norm = HeadLayerNorm(start.norm_scale(), self.heads, 1e-5 * config.head_dim)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> RWKV7State:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        size, wide = self.config.head_dim, jnp.promote_types(dtype, jnp.float32)
        recurrence = delta_rule.empty_state(batch, self.heads, size, size, wide)
        return RWKV7State(self.shift.init_state(batch, dtype), recurrence)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: RWKV7State | None
    ) -> tuple[jax.Array, RWKV7State]:
        ids_BT = context.segment_ids_BT
        state = state or RWKV7State(None, None)
        before_BTD, shift = self.shift(x_BTD, ids_BT, state.shift)
        change_BTD = before_BTD - x_BTD

        def mixed(name: str) -> jax.Array:
            return x_BTD + change_BTD * self._channels(self.mix[name], x_BTD)

        r_BTD, k_BTD = self.r(mixed("r")), self.k(mixed("k"))
        v_BTD = self._with_first_value(self.v(mixed("v")), mixed("v"), context)
        rate_BTD = jax.nn.sigmoid(at_least_float32(self.rate(mixed("a"))))
        rate_BTD = context.hook("hook_rate", rate_BTD, self.heads)
        log_w_BTD = -STRONGEST_DECAY * jax.nn.sigmoid(at_least_float32(self.decay(mixed("w"))))
        log_w_BTD = context.hook("hook_log_decay", log_w_BTD, self.heads)
        removal_BTHK = l2_normalize(
            self._by_head(at_least_float32(k_BTD * self._channels(self.removal_key, k_BTD))), 1e-12
        )
        removal_BTHK = context.hook("hook_removal_key", removal_BTHK)
        key_rate = self._channels(self.key_rate, rate_BTD)
        k_BTHK = self._by_head((k_BTD * (1 + (rate_BTD - 1) * key_rate)).astype(x_BTD.dtype))
        r_BTHK, v_BTHK = self._by_head(r_BTD), self._by_head(v_BTD)
        r_BTHK, k_BTHK = context.hook("hook_q", r_BTHK), context.hook("hook_k", k_BTHK)
        v_BTHK = context.hook("hook_v", v_BTHK)
        o_BTHK, recurrence = self._recur(
            r_BTHK,
            k_BTHK,
            v_BTHK,
            self._by_head(log_w_BTD),
            self._by_head(rate_BTD) * removal_BTHK,
            removal_BTHK,
            segment_ids=ids_BT,
            initial_state=state.recurrence,
            return_state=True,
        )
        o_BTHK = context.hook("hook_recurrence_out", o_BTHK)
        bonus_BTHK = r_BTHK * k_BTHK * self._by_head(self._channels(self.bonus, r_BTD))
        direct_BTHK = jnp.sum(at_least_float32(bonus_BTHK), axis=-1, keepdims=True) * v_BTHK
        o_BTD = self.norm(o_BTHK) + direct_BTHK.astype(x_BTD.dtype).reshape(x_BTD.shape)
        gate_BTD = context.hook("hook_gate", self.gate(mixed("g")), self.heads)
        return self.out(o_BTD * gate_BTD), RWKV7State(shift, recurrence)

    @staticmethod
    def _recur(r_BTHK, k_BTHK, v_BTHK, log_w_BTHK, removed_BTHK, removal_BTHK, **options):
        """Two updates a token: what S holds at the removal key goes, at a key of its own; k v^T comes.

        S is read before it decays. The operation reads it afterwards, so the key is divided by the
        decay, which is at least 0.54.
        """
        dtype = v_BTHK.dtype
        before_BTHK = (removal_BTHK * jnp.exp(-log_w_BTHK)).astype(dtype)
        return delta_product(
            ops.delta_rule,
            r_BTHK,
            jnp.stack([removed_BTHK.astype(dtype), k_BTHK], axis=2),
            jnp.stack([jnp.zeros_like(v_BTHK), v_BTHK], axis=2),
            None,
            log_w_BTHK,
            erase_BTNGK=jnp.stack([before_BTHK, jnp.zeros_like(before_BTHK)], axis=2),
            scale=1.0,
            **options,
        )

    def _with_first_value(
        self, v_BTD: jax.Array, mixed_BTD: jax.Array, context: SequenceContext
    ) -> jax.Array:
        """The value, moved towards that of the lowest rwkv7 layer, which goes on to the next layers."""
        arrays = context.cross_layer
        if not self.config.value_residual or arrays is None:
            return v_BTD
        share_BTD = jax.nn.sigmoid(at_least_float32(self.value_share(mixed_BTD)))
        first_BTD = jnp.where(arrays[HAS_FIRST] > 0, arrays[FIRST_VALUE], v_BTD)
        arrays[FIRST_VALUE] = first_BTD
        arrays[HAS_FIRST] = jnp.ones_like(arrays[HAS_FIRST])
        return v_BTD + share_BTD.astype(v_BTD.dtype) * (first_BTD - v_BTD)

    def _by_head(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD.reshape(*x_BTD.shape[:2], self.heads, -1)

    @staticmethod
    def _channels(parameter: nnx.Param, x: jax.Array) -> jax.Array:
        return along_last(parameter[...].astype(x.dtype), x)


class LowRankMap(nnx.Module):
    """x -> base + W2 act(W1 x): W1 starts at 0, W2 orthogonal times 0.1. No weight decay, no Muon."""

    def __init__(
        self, width: int, rank: int, base: jax.Array | None, act=lambda x: x, *, rngs: nnx.Rngs
    ):
        orthogonal = jax.nn.initializers.orthogonal(0.1)
        self.down = nnx.Param(jnp.zeros((width, rank)), axes=("embed", "rank"))
        self.up = nnx.Param(orthogonal(rngs.params(), (rank, width)), axes=("rank", "heads"))
        self.base = None if base is None else nnx.Param(base, axes=("heads",))
        self.act = act

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        hidden = self.act(x_BTD @ self.down[...].astype(x_BTD.dtype))
        y_BTD = hidden @ self.up[...].astype(x_BTD.dtype)
        return y_BTD if self.base is None else y_BTD + along_last(self.base[...], y_BTD)


class HeadLayerNorm(nnx.Module):
    """(x - mean) / std of each head, times a scale and plus a bias per channel; heads side by side.

    Statistics are float32. This is a group norm with a group per head. `scale` is the initial one (D,).
    """

    def __init__(self, scale: jax.Array, heads: int, eps: float):
        self.scale = channels(scale)
        self.bias = channels(jnp.zeros_like(scale))
        self.eps = eps

    def __call__(self, x_BTHK: jax.Array) -> jax.Array:
        x32 = at_least_float32(x_BTHK)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.eps)).reshape(*x_BTHK.shape[:2], -1)
        return (y * along_last(self.scale[...], y) + along_last(self.bias[...], y)).astype(
            x_BTHK.dtype
        )


def channels(initial: jax.Array) -> nnx.Param:
    """One number per channel, without weight decay."""
    return nnx.Param(initial, axes=("heads",))


class Initial:
    """Initial values that depend on the layer and the channel."""

    def __init__(self, spec: LayerSpec, head_dim: int):
        width = spec.width
        self.width = width
        self.height = spec.index / max(spec.depth - 1, 1)  # 0 at the lowest layer, 1 at the highest
        self.below_top = 1 - spec.index / spec.depth
        self.reached = (spec.index + 1) / spec.depth
        self.channel = jnp.arange(width) / width
        self.ramp = jnp.arange(width) / (width - 1) - 0.5
        middle = (head_dim - 1) / 2
        zigzag = (jnp.arange(width) % head_dim - middle) / middle
        self.zigzag = zigzag * jnp.abs(zigzag)

    def mix(self, power: float) -> jax.Array:
        """The share of the token before: large in low channels and in low layers."""
        return 1 - self.channel ** (power * self.below_top)

    def norm_scale(self) -> jax.Array:
        """The scale of the heads' norm: 1 at the highest layer, smaller below."""
        return self.reached**0.7 * jnp.ones(self.width)

    def decay(self) -> jax.Array:
        rise = (self.ramp + 0.5) ** (1 + self.height**0.3)
        return -6 + 6 * rise + 0.5 + 2.5 * self.zigzag

    def rate(self) -> jax.Array:
        return -0.19 + 0.3 * self.zigzag + 0.4 * self.ramp

    def value_share(self) -> jax.Array:
        return 0.73 - 0.4 * self.ramp

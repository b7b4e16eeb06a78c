"""A toy of RWKV-7 (arXiv 2503.14456): token shift, low-rank gates, a value residual across layers.

It is written as a contributor would write a mixer; a test adds it to a copy of the checkout.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.delta import LowRank
from hybridlm.models.mixers.parts import ShortConv, l2_normalize
from hybridlm.models.norms import RMSNorm, at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas import delta_rule
from kernels_pallas.causal_conv import ConvState

FIRST_VALUE = "first_value"


@settings
class ToyRWKV7Config(MixerConfig):
    """A delta rule with a decay per channel, and values mixed with those of the lowest layer.

    Attributes:
      heads: heads of the recurrence; they divide model.width.
      rank: rank of the low-rank map that makes the decay.
    """

    kind_name: ClassVar[str] = "toy_rwkv7"
    head_settings: ClassVar[tuple[str, ...]] = ("heads",)
    equation: ClassVar[str] = "S_t = (I - b_t k_t k_t^T) Diag(w_t) S_{t-1} + b_t k_t v_t^T"
    source: ClassVar[str] = "after arXiv 2503.14456"
    operations: ClassVar[tuple[str, ...]] = ("delta_rule", "causal_conv")

    heads: PositiveInt
    rank: PositiveInt = 4

    def check_width(self, width: int) -> None:
        require(width % self.heads == 0, "heads", f"is {self.heads}: take a divisor of {width}")

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "ToyRWKV7":
        return ToyRWKV7(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        projections = 2 * width * (4 * width + 2 * self.rank + 2 * self.heads) + 2 * 2 * width
        return projections + 3 * 2 * width * width // self.heads

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        return 4 * width * width // self.heads + width * itemsize

    def cross_layer(self, width: int, depth: int) -> dict[str, tuple[int, ...]]:
        return {FIRST_VALUE: (width,)}


class ToyState(NamedTuple):
    """The last input, and the recurrence's S."""

    shift: ConvState
    recurrence: delta_rule.DeltaRuleState


class ToyRWKV7(Mixer):
    """The mixer of `ToyRWKV7Config`."""

    def __init__(self, config: ToyRWKV7Config, spec: LayerSpec, *, rngs: nnx.Rngs):
        width = spec.width
        self.heads, self.size = config.heads, width // config.heads
        self.shift = ShortConv(width, 2, rngs=rngs)
        self.q = Linear(width, width, ("embed", "heads"), rngs=rngs)
        self.k = Linear(width, width, ("embed", "heads"), rngs=rngs)
        self.v = Linear(width, width, ("embed", "heads"), rngs=rngs)
        self.beta = Linear(width, config.heads, ("embed", "heads"), rngs=rngs)
        self.mix = Linear(width, config.heads, ("embed", "heads"), rngs=rngs)
        self.decay = LowRank(width, config.rank, width, rngs=rngs)
        self.norm = RMSNorm(self.size, spec.norm_eps)
        self.out = Linear(width, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> ToyState:
        wide = jnp.promote_types(dtype, jnp.float32)
        recurrence = delta_rule.empty_state(batch, self.heads, self.size, self.size, wide)
        return ToyState(self.shift.init_state(batch, dtype), recurrence)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: ToyState | None
    ) -> tuple[jax.Array, ToyState]:
        ids_BT = context.segment_ids_BT
        state = state or ToyState(None, None)
        s_BTD, shift = self.shift(x_BTD, ids_BT, state.shift)
        v_BTHV = self._by_head(self._value(s_BTD, context))
        o_BTHV, recurrence = ops.delta_rule(
            l2_normalize(self._by_head(self.q(s_BTD))),
            l2_normalize(self._by_head(self.k(s_BTD))),
            v_BTHV,
            jax.nn.sigmoid(at_least_float32(self.beta(s_BTD))),
            -jax.nn.softplus(at_least_float32(self._by_head(self.decay(s_BTD)))),
            segment_ids=ids_BT,
            initial_state=state.recurrence,
            return_state=True,
        )
        y_BTD = self.out(self.norm(o_BTHV).reshape(x_BTD.shape))
        return y_BTD, ToyState(shift, recurrence)

    def _value(self, s_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        """This layer's value, mixed with the lowest layer's value if cross-layer arrays exist."""
        v_BTD = self.v(s_BTD)
        handed = context.cross_layer
        if handed is None:
            return v_BTD
        first_BTD = jnp.where(context.layer == 0, v_BTD, handed[FIRST_VALUE])
        handed[FIRST_VALUE] = first_BTD
        share_BTD = jnp.repeat(jax.nn.sigmoid(self.mix(s_BTD)), self.size, axis=2)
        return v_BTD + share_BTD * (first_BTD - v_BTD)

    def _by_head(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD.reshape(*x_BTD.shape[:2], self.heads, self.size)

"""Gated linear attention (arXiv 2312.06635): each channel of the key forgets at its own rate."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.parts import GatedRMSNorm
from hybridlm.models.norms import at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import PositiveFloat, PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas.gated_linear import GatedLinearState, empty_state


@settings
class GLAConfig(MixerConfig):
    """Settings of the GLA mixer.

    Attributes:
      heads: heads of query, key and value.
      expand_k: width of all keys together, as a multiple of the model's.
      expand_v: width of all values together, as a multiple of the model's.
      gate_rank: width of the bottleneck that the decays are projected through.
      gate_normalizer: n in the decay sigmoid(.)^(1/n): larger starts with longer memory.
    """

    kind_name: ClassVar[str] = "gla"
    other_names: ClassVar[Mapping[str, str]] = {
        "gated_linear_attention": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads",)
    equation: ClassVar[str] = (
        "S_t = Diag(a_t) S_{t-1} + k_t v_t^T, a_t = sigmoid(W2 W1 x_t + b)^(1/16)"
    )
    source: ClassVar[str] = "arXiv 2312.06635 sec. 4.4"
    operations: ClassVar[tuple[str, ...]] = ("gated_linear",)

    heads: PositiveInt = 4
    expand_k: PositiveFloat = 0.5
    expand_v: PositiveFloat = 1.0
    gate_rank: PositiveInt = 16
    gate_normalizer: PositiveFloat = 16.0

    def check_width(self, width: int) -> None:
        for name, size in zip(("expand_k", "expand_v"), self.sizes(width), strict=True):
            factor = getattr(self, name)
            require(
                size >= 1 and abs(size * self.heads - factor * width) < 1e-6,
                name,
                f"times model.width is {factor * width:g}, which {self.heads} heads do not divide",
            )

    def sizes(self, width: int) -> tuple[int, int]:
        """(key size, value size) of a head."""
        return tuple(round(width * f) // self.heads for f in (self.expand_k, self.expand_v))

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "GLA":
        return GLA(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        key_size, value_size = self.sizes(width)
        keys, values = self.heads * key_size, self.heads * value_size
        projections = 2 * width * (2 * keys + 3 * values)
        decays = 2 * self.gate_rank * (width + keys)
        return projections + decays + 4 * keys * value_size

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len, itemsize
        key_size, value_size = self.sizes(width)
        return 4 * self.heads * key_size * value_size

    @property
    def mechanism(self) -> str:
        return "GLA, decay per channel"


class GLA(Mixer):
    """out(rmsnorm(o) * silu(gate x)): the mixer of `GLAConfig`; the norm is over each head."""

    def __init__(self, config: GLAConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, heads = spec.width, config.heads
        key_size, value_size = config.sizes(width)
        keys, values = heads * key_size, heads * value_size
        self.config = config
        self.q = Linear(width, keys, ("embed", "heads"), rngs=rngs)
        self.k = Linear(width, keys, ("embed", "heads"), rngs=rngs)
        self.v = Linear(width, values, ("embed", "heads"), rngs=rngs)
        self.gate = Linear(width, values, ("embed", "heads"), rngs=rngs)
        self.decay_down = Linear(width, config.gate_rank, ("embed", "rank"), rngs=rngs)
        self.decay_up = Linear(config.gate_rank, keys, ("rank", "heads"), rngs=rngs)
        self.decay_bias = nnx.Param(jnp.zeros(keys), axes=("heads",))
        self.norm = GatedRMSNorm(value_size, spec.norm_eps)
        self.out = Linear(values, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)
        self.key_size, self.value_size = key_size, value_size

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> GatedLinearState:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        dtype = jnp.promote_types(dtype, jnp.float32)
        return empty_state(batch, self.config.heads, self.key_size, self.value_size, dtype)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: GatedLinearState | None
    ) -> tuple[jax.Array, GatedLinearState]:
        def heads(y_BTI):
            return y_BTI.reshape(*y_BTI.shape[:2], self.config.heads, -1)

        o_BTHV, state = ops.gated_linear(
            context.hook("hook_q", heads(self.q(x_BTD))),
            context.hook("hook_k", heads(self.k(x_BTD))),
            context.hook("hook_v", heads(self.v(x_BTD))),
            context.hook("hook_log_decay", heads(self._log_decay(x_BTD))),
            segment_ids=context.segment_ids_BT,
            scale=self.key_size**-0.5,
            initial_state=state,
            return_state=True,
        )
        o_BTHV = context.hook("hook_recurrence_out", o_BTHV)
        y_BTHV = self.norm(o_BTHV, context.hook("hook_gate_input", heads(self.gate(x_BTD))))
        return self.out(y_BTHV.reshape(*x_BTD.shape[:2], -1)), state

    def _log_decay(self, x_BTD: jax.Array) -> jax.Array:
        """log a in float32: logsigmoid of a low-rank projection, divided by the normalizer."""
        logits = at_least_float32(self.decay_up(self.decay_down(x_BTD)))
        logits += self.decay_bias[...].astype(logits.dtype)[None, None]
        return jax.nn.log_sigmoid(logits) / self.config.gate_normalizer

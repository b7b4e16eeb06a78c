"""Gated DeltaNet-2 (arXiv 2605.22791): what is erased and what is written have gates of their own."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.models.mixers.delta import Delta, GatedHeadNorm, LowRank, SharedKeysConfig, Sizes
from hybridlm.models.mixers.kda import ChannelDecay
from hybridlm.models.mixers.parts import ConvWidth
from hybridlm.models.norms import at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import PositiveInt, settings
from kernels_pallas import delta_rule


@settings
class GDN2Config(SharedKeysConfig):
    """Gated DeltaNet-2: Kimi Delta Attention with a gate per channel for erasing and for writing.

    Attributes:
      heads: query and key heads, and heads of the decay and of the erase gate.
      value_heads: value heads, a multiple of `heads`; consecutive ones share a query/key head.
        None is `heads`.
      head_dim: size of a query and key head; None is width // heads.
      value_dim: size of a value head, and rank of the projections to the decay and the output gate;
        None is `head_dim`.
      conv_width: taps of the convolutions on q, k and v.
      negative_eigenvalues: an erase gate in (0, 2) instead of (0, 1), so that a key's content may
        flip its sign (arXiv 2411.12537).
    """

    kind_name: ClassVar[str] = "gdn2"
    other_names: ClassVar[Mapping[str, str]] = {
        "gated_deltanet_2": "",
        "gated_deltanet2": "",
        "gated_delta_rule_2": "",
        "gdn_2": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads", "value_heads")
    equation: ClassVar[str] = (
        "S' = Diag(a_t) S_{t-1}, S_t = S' + k_t (w_t * v_t - S'^T (b_t * k_t))^T, o_t = S_t^T q_t"
    )
    source: ClassVar[str] = "arXiv 2605.22791"
    operations: ClassVar[tuple[str, ...]] = ("causal_conv", "delta_rule")
    name: ClassVar[str] = "Gated DeltaNet-2"

    heads: PositiveInt
    value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    value_dim: PositiveInt | None = None
    conv_width: ConvWidth = 4
    negative_eigenvalues: bool = False

    def sizes(self, width: int) -> Sizes:
        key_size = self.head_dim or width // self.heads
        return Sizes(self.heads, self.value_heads, key_size, self.value_dim or key_size)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "GatedDelta2":
        sizes = self.sizes(spec.width)
        rank = sizes.value_size
        gate = LowRank(spec.width, rank, sizes.values, rngs=rngs, bias=True)
        output = GatedHeadNorm(sizes.value_size, spec.norm_eps, gate, jax.nn.sigmoid)
        decay = ChannelDecay(spec.width, sizes, rngs=rngs, rank=rank)
        return GatedDelta2(self, spec, decay, output, rngs=rngs)

    def update_gates(self, sizes: Sizes) -> int:
        return sizes.keys + sizes.values

    def gate_flops(self, width: int) -> int:
        sizes = self.sizes(width)
        return 2 * sizes.value_size * (2 * width + sizes.keys + sizes.values)


class GatedDelta2(Delta):
    """The mixer of `GDN2Config`: b = sigmoid(W_b x) per key channel, w = sigmoid(W_w x) per value channel."""

    def build_update(self, width: int, rngs: nnx.Rngs) -> None:
        self.erase = Linear(width, self.sizes.keys, ("embed", "kv_heads"), rngs=rngs)
        self.write = Linear(width, self.sizes.values, ("embed", "heads"), rngs=rngs)

    def update(
        self,
        x_BTD: jax.Array,
        context: SequenceContext,
        q_BTI: jax.Array,
        k_BTI: jax.Array,
        v_BTI: jax.Array,
        **options: Any,
    ) -> tuple[jax.Array, delta_rule.DeltaRuleState]:
        k_BTGK, v_BTHV = self.normed(k_BTI), self.values(v_BTI)
        erase_gate_BTGK = context.hook("hook_erase_gate", gate(self.erase(x_BTD), k_BTGK))
        erase_BTGK = self.largest_beta * erase_gate_BTGK * k_BTGK
        write_gate_BTHV = context.hook("hook_input_gate", gate(self.write(x_BTD), v_BTHV))
        written_BTHV = context.hook("hook_written", write_gate_BTHV * v_BTHV)
        log_decay_BTHK = jnp.repeat(
            self.log_decay(x_BTD, context), self.sizes.value_heads // self.sizes.heads, axis=2
        )
        return ops.delta_rule(
            self.normed(q_BTI),
            k_BTGK,
            written_BTHV,
            log_decay=log_decay_BTHK,
            erase_BTGK=erase_BTGK,
            **options,
        )


def gate(logits: jax.Array, like: jax.Array) -> jax.Array:
    """The sigmoid, in float32, in the shape and dtype of `like`."""
    return jax.nn.sigmoid(at_least_float32(logits)).reshape(like.shape).astype(like.dtype)

"""Gated slot attention: softmax attention over a fixed number of gated memory slots."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Identity, Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.norms import RMSNorm, at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import PositiveFloat, PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas import gated_slots
from kernels_pallas.gated_slots import SlotState


@settings
class GSAConfig(MixerConfig):
    """Gated slot attention.

    Attributes:
      heads: query heads.
      kv_heads: key/value heads, each with slots of its own; None is `heads`.
      head_dim: size of a head; None is width // heads.
      slots: memory slots of a key/value head.
      gate_normalizer: the gate is sigmoid(W_f x)^(1 / this); larger remembers longer.
      empty_slots: slots that nothing was written into are "null" (logit 0 and value 0, they stay
        in the softmax's denominator; the authors' code) or "masked" (left out of it).
      swish_qk: swish on the queries and keys of the slots.
      swish_v: swish on the values.
      output_norm: RMSNorm(swish(y)) over all heads before the output projection.
      scale: factor on logits; None is head_dim ** -0.5.
      bias: biases on the projections of queries, keys and values (a hybridised Qwen2).
    """

    kind_name: ClassVar[str] = "gsa"
    other_names: ClassVar[Mapping[str, str]] = {
        "gated_slot_attention": "",
        "gated_slots": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads", "kv_heads")
    equation: ClassVar[str] = (
        "M_t = Diag(a_t) M_{t-1} + (1 - a_t) [k_t; v_t]^T, o_t = softmax(M^K_t q_t) M^V_t,"
        " a_t = sigmoid(W_f x_t)^(1/8)"
    )
    source: ClassVar[str] = "arXiv 2409.07146"
    operations: ClassVar[tuple[str, ...]] = ("gated_slots",)

    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    slots: PositiveInt = 64
    gate_normalizer: PositiveFloat = 8.0
    empty_slots: Literal["null", "masked"] = "null"
    swish_qk: bool = True
    swish_v: bool = True
    output_norm: bool = True
    scale: PositiveFloat | None = 1.0
    bias: bool = False

    def __post_init__(self):
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        require(
            self.heads % kv_heads == 0,
            "kv_heads",
            f"is {kv_heads} and does not divide heads {self.heads}",
        )
        object.__setattr__(self, "kv_heads", kv_heads)

    def check_width(self, width: int) -> None:
        require(
            self.head_dim is not None or width % self.heads == 0,
            "heads",
            f"is {self.heads} and does not divide model.width {width}: change it, or set head_dim",
        )

    def head_size(self, width: int) -> int:
        return self.head_dim or width // self.heads

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "GSA":
        return GSA(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # the slots cost the same at every position
        return self.projection_flops(width) + self.slot_flops(width)

    def projection_flops(self, width: int) -> int:
        """FLOPs per token of the projections: q, k, v, gate and out."""
        size = self.head_size(width)
        return 2 * width * (2 * size * (self.heads + self.kv_heads) + self.kv_heads * self.slots)

    def slot_flops(self, width: int) -> int:
        """FLOPs per token of reading and updating the slots' keys and values."""
        return 2 * 2 * self.slots * self.head_size(width) * (self.heads + self.kv_heads)

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len, itemsize
        return 4 * 2 * self.kv_heads * self.slots * self.head_size(width)

    @property
    def mechanism(self) -> str:
        return f"gated slot attention, {self.slots} slots"


class GSA(Mixer):
    """The mixer of `GSAConfig`."""

    def __init__(self, config: GSAConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, size = spec.width, config.head_size(spec.width)
        heads, kv_heads = config.heads, config.kv_heads
        self.config = config
        self.size = size
        self.scale = size**-0.5 if config.scale is None else config.scale
        bias = config.bias
        self.q = Linear(width, heads * size, ("embed", "heads"), rngs=rngs, bias=bias)
        self.k = Linear(width, kv_heads * size, ("embed", "kv_heads"), rngs=rngs, bias=bias)
        self.v = Linear(width, kv_heads * size, ("embed", "kv_heads"), rngs=rngs, bias=bias)
        self.gate = Linear(width, kv_heads * config.slots, ("embed", "kv_heads"), rngs=rngs)
        self.out = Linear(heads * size, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)
        self.feature_map = jax.nn.silu if config.swish_qk else Identity()
        self.value_map = jax.nn.silu if config.swish_v else Identity()
        self.out_norm = SwishNorm(heads * size, spec.norm_eps) if config.output_norm else Identity()

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> SlotState:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        return self._empty_slots(batch, dtype)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: SlotState | None
    ) -> tuple[jax.Array, SlotState]:
        q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM = self._project(x_BTD, context)
        out_BTHV, _, state = ops.gated_slots(
            self.feature_map(q_BTHK),
            self.feature_map(k_BTGK),
            v_BTGV,
            log_gate_BTGM,
            segment_ids=context.segment_ids_BT,
            initial_state=state,
            return_state=True,
            **self._options(),
        )
        return self._output(context.hook("hook_recurrence_out", out_BTHV)), state

    def _project(
        self, x_BTD: jax.Array, context: SequenceContext
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """q, k, v and the slots' log-gates; the gates in at least float32."""
        q_BTHK, k_BTGK, v_BTGV, gate_BTGM = (
            layer(x_BTD).reshape(*x_BTD.shape[:2], heads, -1)
            for layer, heads in (
                (self.q, self.config.heads),
                (self.k, self.config.kv_heads),
                (self.v, self.config.kv_heads),
                (self.gate, self.config.kv_heads),
            )
        )
        log_gate_BTGM = jax.nn.log_sigmoid(at_least_float32(gate_BTGM))
        return (
            context.hook("hook_q", q_BTHK),
            context.hook("hook_k", k_BTGK),
            context.hook("hook_v", self.value_map(v_BTGV)),
            context.hook("hook_log_decay", log_gate_BTGM / self.config.gate_normalizer),
        )

    def _output(self, out_BTHV: jax.Array) -> jax.Array:
        return self.out(self.out_norm(out_BTHV.reshape(*out_BTHV.shape[:2], -1)))

    def _options(self) -> dict[str, object]:
        return dict(scale=self.scale, mask_empty=self.config.empty_slots == "masked")

    def _empty_slots(self, batch: int, dtype: jnp.dtype) -> SlotState:
        return gated_slots.empty_state(
            batch,
            self.config.kv_heads,
            self.config.slots,
            self.size,
            self.size,
            jnp.promote_types(dtype, jnp.float32),
        )


class SwishNorm(nnx.Module):
    """RMSNorm(swish(y)) over all heads together."""

    def __init__(self, size: int, eps: float):
        self.norm = RMSNorm(size, eps, ("heads",))

    def __call__(self, y: jax.Array) -> jax.Array:
        return self.norm(jax.nn.silu(y))

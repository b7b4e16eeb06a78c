"""Lightning attention (arXiv 2401.04658, MiniMax-01 arXiv 2501.08313): a fixed decay per head."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybridlm.models.layers import Identity, Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.parts import GatedRMSNorm
from hybridlm.models.norms import RMSNorm
from hybridlm.models.positional import Rope, RopeConfig, check_rope, no_rope
from hybridlm.parallel import ops
from hybridlm.settings.bounds import (
    Epsilon,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    settings,
)
from hybridlm.settings.reader import require
from kernels_pallas.gated_linear import GatedLinearState, empty_state


@settings
class LightningConfig(MixerConfig):
    """Settings of the Lightning mixer.

    Attributes:
      heads: heads of query, key and value.
      head_dim: size of a head; None is width // heads.
      decay: decay per token of head h of H: "lightning" is exp(-2^(-8h/H)) for h = 1..H, "retnet"
        1 - 2^(-5-h) for h = 0..H-1 (arXiv 2307.08621).
      decay_scale: factor on every log-decay. MiniMax-01 sets 1 - l/(L-1) + 1e-5 in layer l of L.
      activation: "silu" on query, key and value (MiniMax-01), or "none" (HypeNet).
      rope: RoPE on queries and keys (HypeNet, arXiv 2601.22156), or None.
      qk_norm: RMSNorm with a learned scale on each query and key head before RoPE (HypeNet).
      scale: factor on q . k; None is 1 (MiniMax-01). HypeNet has head_dim ** -0.5.
      norm_eps: epsilon of the output norm; None is `model.norm_eps`. MiniMax-01's is 1e-6.
    """

    kind_name: ClassVar[str] = "lightning"
    other_names: ClassVar[Mapping[str, str]] = {
        "lightning_attention": "",
        "lightning_attention_2": "",
        "minimax": "",
        "retnet": "decay='retnet'",
        "retention": "decay='retnet'",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads",)
    equation: ClassVar[str] = "S_t = a_h S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, a_h fixed"
    source: ClassVar[str] = "arXiv 2401.04658; MiniMax-01 arXiv 2501.08313 sec. 2.2"
    operations: ClassVar[tuple[str, ...]] = ("gated_linear",)

    heads: PositiveInt
    head_dim: PositiveInt | None = None
    decay: Literal["lightning", "retnet"] = "lightning"
    decay_scale: NonNegativeFloat = 1.0
    activation: Literal["silu", "none"] = "silu"
    rope: RopeConfig | None = None
    qk_norm: bool = False
    scale: PositiveFloat | None = None
    norm_eps: Epsilon | None = None

    def __post_init__(self):
        if self.head_dim is not None:
            check_rope(self.rope, self.head_dim)

    def check_width(self, width: int) -> None:
        if self.head_dim is None:
            require(
                width % self.heads == 0,
                "heads",
                f"is {self.heads} and does not divide model.width {width}: set head_dim",
            )
            check_rope(self.rope, width // self.heads)

    def head_size(self, width: int) -> int:
        return self.head_dim or width // self.heads

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Lightning":
        return Lightning(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        size = self.head_size(width)
        return 2 * 5 * width * self.heads * size + 4 * self.heads * size * size

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len, itemsize
        return 4 * self.heads * self.head_size(width) ** 2

    @property
    def mechanism(self) -> str:
        return f"{self.decay} decay, {'RoPE' if self.rope else 'NoPE'}"


def _lightning_log_decay(heads: int) -> np.ndarray:
    return -(2.0 ** (-8 * np.arange(1, heads + 1) / heads))


def _retnet_log_decay(heads: int) -> np.ndarray:
    return np.log1p(-(2.0 ** (-5 - np.arange(heads))))


DECAYS = {"lightning": _lightning_log_decay, "retnet": _retnet_log_decay}
ACTIVATIONS = {"silu": jax.nn.silu, "none": lambda x: x}


class Lightning(Mixer):
    """out(rmsnorm(o) * sigmoid(gate x)): the mixer of `LightningConfig`.

    The norm is over all heads together, and the gate comes after it (MiniMax-01).
    """

    def __init__(self, config: LightningConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, size = spec.width, config.head_size(spec.width)
        inner = config.heads * size
        self.config = config
        self.q = Linear(width, inner, ("embed", "heads"), rngs=rngs)
        self.k = Linear(width, inner, ("embed", "heads"), rngs=rngs)
        self.v = Linear(width, inner, ("embed", "heads"), rngs=rngs)
        self.gate = Linear(width, inner, ("embed", "heads"), rngs=rngs)
        self.q_norm = RMSNorm(size, spec.norm_eps) if config.qk_norm else Identity()
        self.k_norm = RMSNorm(size, spec.norm_eps) if config.qk_norm else Identity()
        self.rope = Rope(config.rope, size) if config.rope else no_rope
        norm_eps = config.norm_eps or spec.norm_eps
        self.norm = GatedRMSNorm(inner, norm_eps, act=jax.nn.sigmoid)
        self.out = Linear(inner, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)
        self.size = size

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> GatedLinearState:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        dtype = jnp.promote_types(dtype, jnp.float32)
        return empty_state(batch, self.config.heads, self.size, self.size, dtype)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: GatedLinearState | None
    ) -> tuple[jax.Array, GatedLinearState]:
        act = ACTIVATIONS[self.config.activation]

        def heads(y_BTI):
            return act(y_BTI).reshape(*x_BTD.shape[:2], self.config.heads, self.size)

        def rotated(name, y_BTHK):
            y_BTHK = self.rope(context.hook(f"hook_{name}", y_BTHK), context.positions_BT)
            return context.hook(f"hook_rot_{name}", y_BTHK) if self.config.rope else y_BTHK

        o_BTHV, state = ops.gated_linear(
            rotated("q", self.q_norm(heads(self.q(x_BTD)))),
            rotated("k", self.k_norm(heads(self.k(x_BTD)))),
            context.hook("hook_v", heads(self.v(x_BTD))),
            context.hook("hook_log_decay", self._log_decay()),
            segment_ids=context.segment_ids_BT,
            scale=self.config.scale,
            initial_state=state,
            return_state=True,
        )
        o_BTI = context.hook("hook_recurrence_out", o_BTHV).reshape(*x_BTD.shape[:2], -1)
        gate_BTI = context.hook("hook_gate_input", self.gate(x_BTD), self.config.heads)
        return self.out(self.norm(o_BTI, gate_BTI)), state

    def _log_decay(self) -> jax.Array:
        log_decay_H = DECAYS[self.config.decay](self.config.heads) * self.config.decay_scale
        return jnp.asarray(log_decay_H, jnp.float32)

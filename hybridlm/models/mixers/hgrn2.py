"""HGRN2 (arXiv 2404.07904): a gated recurrence whose forget gate is also its key, k = 1 - f."""

from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.norms import RMSNorm, at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import Between, PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas.gated_linear import GatedLinearState, empty_state


@settings
class HGRN2Config(MixerConfig):
    """Settings of the HGRN2 mixer.

    Attributes:
      expand: state entries per channel of the value, which is also the size of a head.
      lower_bound: lower bound of the forget gate. The paper learns bounds that grow from layer to layer;
        here it is a number of the mixer, and deeper layers may name another mixer.
    """

    kind_name: ClassVar[str] = "hgrn2"
    equation: ClassVar[str] = (
        "S_t = Diag(f_t) S_{t-1} + (1 - f_t) v_t^T, f_t = b + (1 - b) sigmoid(W x_t)"
    )
    source: ClassVar[str] = "arXiv 2404.07904 sec. 3"
    operations: ClassVar[tuple[str, ...]] = ("gated_linear",)

    expand: PositiveInt = 128
    lower_bound: Annotated[float, Between(0, 1, high_open=True)] = 0.0

    def check_width(self, width: int) -> None:
        require(
            width % self.expand == 0,
            "expand",
            f"is {self.expand} and does not divide model.width {width}",
        )

    def head_counts(self, width: int) -> dict[str, int]:
        return {"heads (model.width / expand)": width // self.expand}

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "HGRN2":
        return HGRN2(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        return 2 * 4 * width * width + 4 * width * self.expand

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len, itemsize
        return 4 * width * self.expand

    @property
    def mechanism(self) -> str:
        return f"HGRN2, expansion {self.expand}"


class HGRN2(Mixer):
    """out(rmsnorm(o)): the mixer of `HGRN2Config`; the norm is over all heads together."""

    def __init__(self, config: HGRN2Config, spec: LayerSpec, *, rngs: nnx.Rngs):
        width = spec.width
        self.config = config
        self.q = Linear(width, width, ("embed", "heads"), rngs=rngs)
        self.forget = Linear(width, width, ("embed", "heads"), rngs=rngs)
        self.input = Linear(width, width, ("embed", "heads"), rngs=rngs)
        self.norm = RMSNorm(width, spec.norm_eps)
        self.out = Linear(width, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)
        self.heads = width // config.expand

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> GatedLinearState:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        dtype = jnp.promote_types(dtype, jnp.float32)
        return empty_state(batch, self.heads, self.config.expand, self.config.expand, dtype)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: GatedLinearState | None
    ) -> tuple[jax.Array, GatedLinearState]:
        def heads(y_BTI):
            return y_BTI.reshape(*y_BTI.shape[:2], self.heads, self.config.expand)

        k_BTI, log_forget_BTI = self._gate(x_BTD)
        o_BTHV, state = ops.gated_linear(
            context.hook("hook_q", heads(jax.nn.silu(self.q(x_BTD)))),
            context.hook("hook_k", heads(k_BTI.astype(x_BTD.dtype))),
            context.hook("hook_v", heads(self.input(x_BTD))),
            context.hook("hook_log_decay", heads(log_forget_BTI)),
            segment_ids=context.segment_ids_BT,
            scale=self.config.expand**-0.5,
            initial_state=state,
            return_state=True,
        )
        o_BTHV = context.hook("hook_recurrence_out", o_BTHV)
        return self.out(self.norm(o_BTHV.reshape(x_BTD.shape))), state

    def _gate(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(1 - f, log f) in float32, each from the logits: computed from f they would lose digits."""
        bound = self.config.lower_bound
        logits = at_least_float32(self.forget(x_BTD))
        open_BTI, shut_BTI = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        # f = sigmoid + bound (1 - sigmoid)
        log_bound = jnp.log(jnp.asarray(bound, logits.dtype))
        return (1 - bound) * jnp.exp(shut_BTI), jnp.logaddexp(open_BTI, log_bound + shut_BTI)

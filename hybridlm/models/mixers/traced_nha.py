"""Native Hybrid Attention whose window is a parameter: one program for every choice of windows.

It is made by code (`hybridlm.distill.selection.windows`, experiments) and is no kind of configs. The
window costs what full attention costs, whatever it is; a chosen window belongs in `NHAConfig`.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.models.mixers.nha import NHA, NHAConfig, Pair, RecentTokens, document_numbers
from hybridlm.parallel import ops
from hybridlm.settings.bounds import settings
from kernels_pallas.gated_slots import NEGATIVE

#: The window of a layer that sees all tokens; float32 holds every smaller whole number exactly.
ALL_TOKENS = 2**24
SPAN = "span"  # the parameter's name in the mixer


@settings
class TracedNHAConfig(NHAConfig):
    """`NHAConfig` whose `window` is only where the parameter `span` starts."""

    kind_name: ClassVar[str] = "traced_nha"

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "TracedNHA":
        return TracedNHA(self, spec, rngs=rngs)

    @property
    def mechanism(self) -> str:
        return f"native hybrid attention, any window, {self.slots} slots"


class TracedNHA(NHA):
    """The mixer of `TracedNHAConfig`, in the parallel form only.

    Attributes:
      span: float32 scalar, the window: 0 is gated slot attention, `ALL_TOKENS` sees every token. It
        gets no gradient.
    """

    def __init__(self, config: TracedNHAConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        super().__init__(config, spec, rngs=rngs)
        window = ALL_TOKENS if config.window is None else config.window
        self.span = nnx.Param(jnp.full((), window, jnp.float32), axes=())

    @property
    def _window(self) -> jax.Array:
        return jax.lax.stop_gradient(self.span[...]).astype(jnp.int32)

    @property
    def has_window(self) -> bool:
        return True

    def narrowed(self, window: int) -> "TracedNHA":
        copy = nnx.clone(self)
        copy.span[...] = jnp.minimum(self.span[...], window)
        return copy

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> Any:
        raise ValueError("a traced window has no decoding state: set NHAConfig.window to decode")

    def extend(self, x_BTD: jax.Array, context: SequenceContext, state: Any) -> Any:
        raise ValueError("a traced window has no decoding form: set NHAConfig.window to decode")

    def _parallel(
        self, x_BTD: jax.Array, context: SequenceContext
    ) -> tuple[Pair, Pair, tuple[jax.Array, RecentTokens]]:
        q_BTHK, tokens = self._tokens(x_BTD, context)
        window = jnp.clip(self._window, 0, x_BTD.shape[1])
        out_BTHV, lse_BTH = ops.attention(
            self.rope(q_BTHK, tokens.positions_BS),
            self._rotated(tokens),
            tokens.v_BSGV,
            segment_ids=tokens.segment_ids_BS,
            window=jnp.maximum(window, 1),
            scale=self.scale,
        )
        some = window > 0
        window_pair = jnp.where(some, out_BTHV, 0), jnp.where(some, lse_BTH, NEGATIVE)
        number_BT = document_numbers(context.segment_ids_BT)
        leaving = delayed(tokens._replace(segment_ids_BS=number_BT), window)
        slots_pair, _ = self._read_slots(q_BTHK, leaving, number_BT, context, None)
        return slots_pair, window_pair, (q_BTHK, tokens)


def delayed(tokens: RecentTokens, by: jax.Array) -> RecentTokens:
    """Every (B, T, ...) array shifted right by `by` tokens, int32 from 0 to T, zeros before."""

    def one(x_BT: jax.Array) -> jax.Array:
        time = x_BT.shape[1]
        padded_BS = jnp.concatenate([jnp.zeros_like(x_BT), x_BT], axis=1)
        return jax.lax.dynamic_slice_in_dim(padded_BS, time - by, time, axis=1)

    return jax.tree.map(one, tokens)

"""The one signature of all forms of a recurrent op.

A form is the reference, the chunked form or a kernel of `linear_recurrence`, `gated_linear`,
`delta_rule` or `selective_scan`. All forms of an op are called alike,

    o, last_state = form(*inputs, call)

with the inputs that the op was given and a `Call`. A form masks, scales and casts by itself: its
o is 0 at padding, and its last state has the dtype `call.dtype`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas import dispatch, segments


class Call(NamedTuple):
    """What a form needs to know besides the op's inputs.

    Attributes:
      starts_BT: True at a document's first token: the state before it counts as 0.
      padding_BT: True at padding: it counts as a token of zeros, and its output is 0.
      state_B: the state before the first token, 0 where that token continues no document.
      dtype: of the state, sums and decays: float32, or float64.
      scale: factor on the output; None is no factor.
      precision: of the matrix products.
      interpret: how a kernel is interpreted; False compiles it.
    """

    starts_BT: Bool[Array, "B T"]
    padding_BT: Bool[Array, "B T"]
    state_B: Float[Array, "B ..."]
    dtype: Any
    scale: float | None
    precision: Any
    interpret: Any

    @classmethod
    def of(
        cls,
        ids_BT: Int[Array, "B T"],
        state_B: Float[Array, "B ..."],
        state_ids_B: Int[Array, "B"],
        dtype,
        scale: float | None = None,
        precision=None,
    ) -> "Call":
        """The call for tokens with segment ids `ids_BT` after a state of tokens `state_ids_B`."""
        return cls(
            starts_BT=segments.document_starts(ids_BT, state_ids_B),
            padding_BT=ids_BT == 0,
            state_B=segments.of_first_document(state_B, state_ids_B, ids_BT).astype(dtype),
            dtype=dtype,
            scale=scale,
            precision=precision,
            interpret=dispatch.target().interpret,
        )

    @property
    def resets_BT(self) -> Bool[Array, "B T"]:
        """True where the state before the token counts as 0: document starts and padding."""
        return self.starts_BT | self.padding_BT

    def without_padding(self, x_BT: Array) -> Array:
        """x (B, T, ...) with zeros at padding."""
        padding = self.padding_BT.reshape(self.padding_BT.shape + (1,) * (x_BT.ndim - 2))
        return jnp.where(padding, 0, x_BT)

    def without_last_padding(self, state_B: Array) -> Array:
        """A last state (B, ...) with zeros where the last token is padding."""
        last_B = self.padding_BT[:, -1]
        return jnp.where(last_B.reshape(last_B.shape + (1,) * (state_B.ndim - 1)), 0, state_B)

    def scaled(self, x: Array) -> Array:
        """x times the scale."""
        return x if self.scale is None else x * self.scale

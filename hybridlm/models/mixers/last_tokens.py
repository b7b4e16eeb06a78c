"""Any mixer restricted to the last tokens of a document: an exact bound on its receptive field."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybridlm.models.mixers.base import Mixer, SequenceContext
from hybridlm.models.mixers.rows import take
from kernels_pallas import segments

_AT_ONCE = 4096  # tokens, over all windows that are computed in one batch


class LastTokens(nnx.Module):
    """Runs a mixer, for each query, on the last `window` tokens of the query's document alone.

    The mixer sees them as a whole document, but at their positions in the longer one. Attention
    gives what it would with such a window; a recurrence starts anew for every query, so the cost is
    T x window. There is no state to decode with: it has the parallel form only.
    """

    def __init__(self, mixer: Mixer, window: int):
        self.mixer = mixer
        self.window = window

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        time = x_BTD.shape[1]
        window = min(self.window, time)
        document_BT = segments.document_number(context.segment_ids_BT)

        def at(t: jax.Array) -> jax.Array:
            index_C = t + jnp.arange(1 - window, 1)
            index_BC = jnp.broadcast_to(index_C[None], (x_BTD.shape[0], window))
            known = (context.segment_ids_BT, context.positions_BT, document_BT)
            ids_BC, positions_BC, document_BC = (take(x, index_BC) for x in known)
            own_BC = (document_BC == document_BC[:, -1:]) & (index_BC >= 0)
            shown = context._replace(
                segment_ids_BT=jnp.where(own_BC, ids_BC, 0),
                positions_BT=positions_BC,
                hooks=None,  # each window has activations of its own
            )
            return self.mixer(take(x_BTD, index_BC), shown)[:, -1]

        y_TBD = jax.lax.map(at, jnp.arange(time), batch_size=int(np.ceil(_AT_ONCE / window)))
        return jnp.moveaxis(y_TBD, 0, 1)

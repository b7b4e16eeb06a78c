"""How far each token reaches back in its document, for all forms."""

import jax
import jax.numpy as jnp

from kernels_pallas import segments


def reach(segment_ids_BS, slots: int):
    """(valid, reach) of each token of the call, (B, T, 1): whether it is not padding, and the number of
    earlier tokens of its document (-1 for padding).

    The first `slots` ids are the state's.
    """
    index_BS = jax.lax.broadcasted_iota(jnp.int32, segment_ids_BS.shape, 1)
    reach_BS = index_BS - segments.first_token_index(segment_ids_BS)
    valid_BS = segment_ids_BS != 0
    reach_BS = jnp.where(valid_BS, reach_BS, -1)
    # The barrier keeps XLA from recomputing document starts for every channel.
    return jax.lax.optimization_barrier((valid_BS[:, slots:, None], reach_BS[:, slots:, None]))

"""Context parallelism: the ops with time split over the devices of a mesh axis.

Each is called inside `jax.shard_map(..., check_vma=False)` with this shard's tokens and the name of the
axis, and returns this shard's part of the result of the op of the same name for the whole rows,
documents, states and gradients included. Windows and convolutions fetch a halo from the left,
recurrences exchange states, full attention passes keys and values around a ring. No shard holds the
whole sequence, except the keys and values of block-sparse and of indexed attention.
"""

from kernels_pallas.context.attention import attention
from kernels_pallas.context.block_sparse import block_sparse_attention
from kernels_pallas.context.causal_conv import causal_conv
from kernels_pallas.context.halo import delay
from kernels_pallas.context.indexed import indexed_attention
from kernels_pallas.context.recurrence import (
    delta_rule,
    gated_linear,
    gated_recurrence,
    gated_slots,
    linear_recurrence,
    selective_scan,
)

__all__ = [
    "attention",
    "block_sparse_attention",
    "causal_conv",
    "delay",
    "delta_rule",
    "gated_linear",
    "gated_recurrence",
    "gated_slots",
    "indexed_attention",
    "linear_recurrence",
    "selective_scan",
]

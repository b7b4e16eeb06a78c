"""The ops of `kernels_pallas` on a mesh: each device runs them on its own shard.

XLA cannot partition a kernel, and gathers the inputs of a scan over split time. On a mesh of
several devices an op therefore runs inside `jax.shard_map`: rows are split like the batch, heads over
`tensor`, and time over `context` in the forms of `kernels_pallas.context`, whose devices exchange
halos, states or keys. Without a mesh, inside another `shard_map`, and if rows or time do not divide
(a single token does not), the op is called directly.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

from hybridlm.parallel.axes import RULES, active_mesh_shape
from kernels_pallas import attention as attention_op
from kernels_pallas import block_sparse as block_sparse_op
from kernels_pallas import causal_conv as conv_op
from kernels_pallas import context
from kernels_pallas import delta_rule as delta_op
from kernels_pallas import gated_linear as gated_op
from kernels_pallas import gated_slots as slots_op
from kernels_pallas import indexed as indexed_op
from kernels_pallas import linear_recurrence as recurrence_op
from kernels_pallas import selective_scan as selective_op

# A letter for each dimension of an array: B rows, T time, H heads or channels, E width of a
# parameter, N one entry for each device that rows and time are split over, "-" not split.
LETTERS = {
    "B": RULES["batch"],
    "T": RULES["time"],
    "H": RULES["heads"],
    "E": RULES["embed"],
    "N": (*RULES["batch"], *RULES["time"]),
    "-": (),
}
(TIME,) = LETTERS["T"]


def per_shard(
    op: Callable[..., Any],
    split_time: Callable[..., Any] | None,
    arguments: Mapping[str, Any],
    results: tuple[Any, ...],
    state: Any = None,
    each_token: bool = False,
) -> Callable[..., Any]:
    """`op`, run by each device on its shard; takes the same arguments and returns the same results.

    Args:
      op: returns its results, a tuple if there are several, and its state with `return_state`.
      split_time: the form of `op` for split time, which also takes the mesh axis that splits time;
        None with `each_token`.
      arguments: letters of every argument that is an array, or a state of letters; a tuple of
        letters for an argument that may have different ranks.
      results, state: letters of the results and the state.
      each_token: True if `op` treats each token independently and needs no form for split time.
        XLA then decides on the mesh axes that do not split rows or time (`tensor`).
    """
    signature = inspect.signature(op)

    @functools.wraps(op)
    def run(*positional: Any, **named: Any) -> Any:
        given = signature.bind(*positional, **named).arguments
        mesh = active_mesh_shape()
        if mesh is None:
            return op(**given)
        arrays = {n: x for n, x in given.items() if n in arguments and _is_array(x)}
        letters = {n: _letters_of(arguments[n], x) for n, x in arrays.items()}
        undivided = _undivided(arrays, letters, mesh)
        manual_axes = LETTERS["N"] if each_token and mesh["tensor"] > 1 else tuple(mesh)
        if undivided & {"B", "T"} or math.prod(mesh[axis] for axis in manual_axes) == 1:
            return op(**given)
        form = op
        if time_is_split() and not each_token:
            form = functools.partial(split_time, axis=TIME)
        options = {n: x for n, x in given.items() if n not in arrays}
        out = (*results, state) if given.get("return_state") else results

        def specs(tree: Any) -> Any:
            return jax.tree.map(lambda text: _spec(text, undivided), tree)

        return jax.shard_map(
            lambda arrays: form(**arrays, **options),
            in_specs=(specs(letters),),
            out_specs=specs(out if len(out) > 1 else out[0]),
            axis_names=set(manual_axes),
            check_vma=False,
        )(arrays)

    return run


def time_is_split() -> bool:
    """Whether ops run in their forms for split time, if rows and time divide."""
    mesh = active_mesh_shape()
    return mesh is not None and mesh[TIME] > 1


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | tuple)  # a tuple is a state


def _letters_of(letters: Any, x: Any) -> Any:
    if type(letters) is tuple:  # not a state, which is a NamedTuple
        return next(text for text in letters if len(text) == x.ndim)
    if isinstance(x, tuple):  # a state may leave a field out
        return type(letters)(*(None if a is None else t for t, a in zip(letters, x, strict=True)))
    return letters


def _undivided(arrays: Any, letters: Any, sizes: Mapping[str, int]) -> set[str]:
    """Letters with a dimension that does not divide over its mesh axes."""
    found = set()
    for x, text in zip(jax.tree.leaves(arrays), jax.tree.leaves(letters), strict=True):
        for size, letter in zip(x.shape, text, strict=True):
            if size % math.prod(sizes[axis] for axis in LETTERS[letter]):
                found.add(letter)
    return found


def _spec(text: str, undivided: set[str]) -> PartitionSpec:
    return PartitionSpec(*(() if letter in undivided else LETTERS[letter] for letter in text))


_QKV = dict(q_BTHK="BTH-", k_BTGK="BTH-", v_BTGV="BTH-", segment_ids="BT")
_QKV_STATES = dict(q_BTGK="BTH-", k_BTGK="BTH-", v_BTHV="BTH-", segment_ids="BT")
_KEYS = attention_op.AttentionState("B-H-", "B-H-", "B-", "B-H")
_BLOCKS = block_sparse_op.BlockSparseState("B-H-", "B-H-", "B-", "B-")
_INDEXED = indexed_op.IndexedState("B-H-", "B-H-", "B--", "B-")
_CONV = conv_op.ConvState("B-H", "B-")
_CHANNELS = recurrence_op.RecurrenceState("BH", "B")
_GATED = gated_op.GatedLinearState("BH--", "B")
_DELTA = delta_op.DeltaRuleState("BH--", "B")
_SLOTS = slots_op.SlotState("BH--", "BH--", "B", "B")
_SELECTIVE = selective_op.SelectiveScanState("BH-", "B")

attention = per_shard(
    attention_op.attention,
    context.attention,
    dict(_QKV, window="", sinks_H="H", log_forget_BTH="BTH", initial_state=_KEYS),
    ("BTH-", "BTH"),
    _KEYS,
)
block_sparse_attention = per_shard(
    block_sparse_op.block_sparse_attention,
    context.block_sparse_attention,
    dict(_QKV, initial_state=_BLOCKS),
    ("BTH-", "BTH"),
    _BLOCKS,
)
indexed_attention = per_shard(
    indexed_op.indexed_attention,
    context.indexed_attention,
    dict(
        _QKV,
        index_q_BTIJ="BT--",
        index_k_BTJ="BT-",
        index_w_BTI="BT-",
        initial_state=_INDEXED,
    ),
    ("BTH-", "BTH"),
)
causal_conv = per_shard(
    conv_op.causal_conv,
    context.causal_conv,
    dict(x_BTD="BTH", kernel_WD="-H", bias_D="H", segment_ids="BT", initial_state=_CONV),
    ("BTH",),
    _CONV,
)
delta_rule = per_shard(
    delta_op.delta_rule,
    context.delta_rule,
    dict(
        _QKV_STATES,
        beta_BTH="BTH",
        log_decay=("BTH", "BTH-"),
        erase_BTGK="BTH-",
        initial_state=_DELTA,
    ),
    ("BTH-",),
    _DELTA,
)
gated_linear = per_shard(
    gated_op.gated_linear,
    context.gated_linear,
    dict(_QKV_STATES, log_decay=("H", "BTH", "BTH-"), initial_state=_GATED),
    ("BTH-",),
    _GATED,
)
gated_recurrence = per_shard(
    recurrence_op.gated_recurrence,
    context.gated_recurrence,
    dict(log_a_BTD="BTH", x_BTD="BTH", segment_ids="BT", initial_state=_CHANNELS),
    ("BTH",),
    _CHANNELS,
)
gated_slots = per_shard(
    slots_op.gated_slots,
    context.gated_slots,
    dict(_QKV, log_gate_BTGM="BTH-", write_BTGM="BTH-", written_BT="BT", initial_state=_SLOTS),
    ("BTH-", "BTH"),
    _SLOTS,
)
linear_recurrence = per_shard(
    recurrence_op.linear_recurrence,
    context.linear_recurrence,
    dict(a_BTD="BTH", b_BTD="BTH", segment_ids="BT", initial_state=_CHANNELS),
    ("BTH",),
    _CHANNELS,
)
selective_scan = per_shard(
    selective_op.selective_scan,
    context.selective_scan,
    dict(
        x_BTD="BTH",
        dt_BTD="BTH",
        a_DN="H-",
        b_BTN="BT-",
        c_BTN="BT-",
        segment_ids="BT",
        initial_state=_SELECTIVE,
    ),
    ("BTH",),
    _SELECTIVE,
)

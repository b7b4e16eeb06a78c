"""The recurrent states of a mixer after chosen tokens, for analyses."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from hybridlm.models.mixers.base import Mixer, SequenceContext
from kernels_pallas.delta_rule import DeltaRuleState
from kernels_pallas.gated_linear import GatedLinearState
from kernels_pallas.gated_slots import SlotState
from kernels_pallas.linear_recurrence import RecurrenceState
from kernels_pallas.selective_scan import SelectiveScanState

#: By class of an op's state, the names of its arrays. Other parts of a mixer's state hold recent
#: tokens (a convolution's last inputs, a cache of keys), which have names of their own.
ARRAYS: dict[type, dict[str, str]] = {
    DeltaRuleState: {"s_BHKV": "hook_state"},
    GatedLinearState: {"s_BHKV": "hook_state"},
    RecurrenceState: {"h_BD": "hook_state"},
    SelectiveScanState: {"h_BDN": "hook_state"},
    SlotState: {"k_slots_BGMK": "hook_state_k", "v_slots_BGMV": "hook_state_v"},
}
NAMES = tuple(dict.fromkeys(name for names in ARRAYS.values() for name in names.values()))


def observe(mixer: Mixer, x_BTD: jax.Array, context: SequenceContext) -> None:
    """Hooks the states after the tokens at `context.hooks.positions`: axis 1 is these positions.

    The mixer runs once more, in pieces that end there. Its states are those of the pieces' last
    tokens' documents. Edits are made to whole sequences: where the mixer has any, the pieces have
    their part of the activations as edited there. An edit of a state changes nothing, as no output is
    computed from it.
    """
    if context.hooks is None or not context.hooks.positions:
        return
    batch, time, _ = x_BTD.shape
    state = mixer.init_state(batch, time, x_BTD.dtype)
    if not list(_arrays(state, context)):
        return
    found = list(_states(mixer, x_BTD, context, state))
    for (part, name, _), arrays in zip(found[0], zip(*([x for *_, x in f] for f in found))):
        part.hook(name, jnp.stack(arrays, axis=1))


def _states(
    mixer: Mixer, x_BTD: jax.Array, context: SequenceContext, state: Any
) -> Iterator[list[tuple[SequenceContext, str, jax.Array]]]:
    plain, start = context._replace(hooks=None, window=None), 0
    edited = _edited(mixer, x_BTD, context) if context.hooks.edits_within() else {}
    for position in context.hooks.positions:
        piece, end = slice(start, position + 1), position + 1
        shown = plain._replace(
            segment_ids_BT=plain.segment_ids_BT[:, piece],
            positions_BT=plain.positions_BT[:, piece],
            cross_layer=jax.tree.map(lambda a, piece=piece: a[:, piece], plain.cross_layer),
        )
        if edited:
            of_piece = {
                name: x[:, piece] if x.shape[:2] == x_BTD.shape[:2] else x
                for name, x in edited.items()
            }
            shown = shown._replace(hooks=context.hooks.replacing(of_piece))
        _, state = mixer.extend(x_BTD[:, piece], shown, state)
        yield list(_arrays(state, context))
        start = end


def _edited(mixer: Mixer, x_BTD: jax.Array, context: SequenceContext) -> dict[str, jax.Array]:
    """By full name, the activations of the mixer that are edited, for the whole sequence."""
    hooks = context.hooks.keeping_edited()
    cross_layer = jax.tree.map(lambda a: a, context.cross_layer)  # a dict of the mixer's own
    mixer(x_BTD, context._replace(hooks=hooks, cross_layer=cross_layer))
    return hooks.kept


def _arrays(
    state: Any, context: SequenceContext
) -> Iterator[tuple[SequenceContext, str, jax.Array]]:
    """(context, name, array) of the recurrent states in a mixer's state, branch by branch."""
    if type(state) in ARRAYS:
        for field, name in ARRAYS[type(state)].items():
            yield context, name, getattr(state, field)
    elif isinstance(state, dict):
        for name, branch in state.items():
            yield from _arrays(branch, context.within(name))
    elif isinstance(state, tuple):
        for part in state:
            yield from _arrays(part, context)

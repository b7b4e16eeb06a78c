"""The share of Native Hybrid Attention's softmax that its slots receive."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from hybridlm.models.mixers.capabilities import has_slots
from hybridlm.models.params import Model, Params
from hybridlm.probes.layers import View, map_mixers, mixer_names, over_layers
from hybridlm.probes.probe import LiveSubject, Probe
from hybridlm.probes.prompts import Prompts
from hybridlm.probes.table import Table


@dataclasses.dataclass(frozen=True)
class SlotShare:
    """The mean share of a head's softmax on slots, in [0, 1], over all tokens except padding."""

    layer: int
    mixer: str
    head: int
    share: float


def slot_share(
    model: Model,
    params: Params,
    prompts: Prompts,
    *,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> Table[SlotShare]:
    """The slots' share of NHA's softmax: sigmoid(lse of the slots - lse of the window).

    Source: arXiv 2510.07019. Layers without both slots and a window have no entry.
    """
    layers = [i for i, has in enumerate(map_mixers(model, has_slots)) if has]
    found = over_layers(model, params, prompts, _shares, layers=layers, batch=batch, dtype=dtype)
    names, real = mixer_names(model), max(int((prompts.segment_ids_NT != 0).sum()), 1)
    entries = [
        SlotShare(layer, names[layer], h, float(sums[:, h].sum() / real))
        for layer, sums in found.items()
        for h in range(sums.shape[1])
    ]
    return Table(
        "slot_share",
        "share of the softmax on the slots, mean over tokens",
        "arXiv 2510.07019",
        tuple(entries),
    )


def _shares(view: View):
    return jnp.sum(view.block.mixer.slot_share(view.mixer_input_BTD, view.context), axis=1)


def _run(subject: LiveSubject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    yield slot_share(subject.model, params, subject.prompts, **subject.options)


def _log_parts(tables: Sequence[Table[Any]]) -> list[str]:
    (table,) = tables
    return [f"slots {sum(e.share for e in table) / len(table):.3f}"] if len(table) else []


SLOT_SHARE = Probe(
    "slot_share",
    "the slots' share of Native Hybrid Attention's softmax",
    "the slots' share of each softmax, mean over tokens (arXiv 2510.07019)",
    _run,
    live=_log_parts,
)

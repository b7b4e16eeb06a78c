"""A toy probe: the root mean square of the residual stream after each layer.

It is written as a contributor would write a probe; a test adds it to a copy of the checkout.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from hybridlm.models.params import Params
from hybridlm.probes.layers import View, mixer_names, over_layers
from hybridlm.probes.probe import LiveSubject, Probe
from hybridlm.probes.table import Table


@dataclasses.dataclass(frozen=True)
class StreamSize:
    """The root mean square of one layer's output over all tokens and channels."""

    layer: int
    mixer: str
    rms: float


def _mean_square(view: View):
    return jnp.mean(jnp.square(view.y_BTD), axis=(1, 2))


def _run(subject: LiveSubject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    names = mixer_names(subject.model)
    found = over_layers(
        subject.model,
        params,
        subject.prompts,
        _mean_square,
        layers=range(len(names)),
        **subject.options,
    )
    rows = [StreamSize(i, names[i], float(x.mean()) ** 0.5) for i, x in found.items()]
    yield Table("stream_size", "root mean square of the residual stream", "a test", tuple(rows))


def _log_parts(tables: Sequence[Table[Any]]) -> list[str]:
    return [f"stream {max(row.rms for row in tables[0]):.3f}"]


STREAM_SIZE = Probe(
    "stream_size",
    "how large the residual stream is",
    "its root mean square",
    _run,
    live=_log_parts,
)

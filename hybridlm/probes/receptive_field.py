"""Answers of a model some of whose layers see only the last tokens."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax.numpy as jnp

from hybridlm.models.mixers.capabilities import has_window
from hybridlm.models.params import Model, Params
from hybridlm.probes.answers import Restriction, answers
from hybridlm.probes.layers import map_mixers, mixer_names
from hybridlm.probes.probe import Probe, Subject
from hybridlm.probes.prompts import Prompts
from hybridlm.probes.table import Table


@dataclasses.dataclass(frozen=True)
class Restricted:
    """The answers with bounded receptive fields; see `Answers` for the figures.

    Attributes:
      layers: the bounded layers.
      mixers: the names of their mixers.
      window: tokens that they see, the query's own included; None if no layer is bounded.
      how: "window", "context" (see `Restriction`), or "context+window" if layers differ.
    """

    layers: tuple[int, ...]
    mixers: tuple[str, ...]
    window: int | None
    how: str | None
    nll: float
    accuracy: float
    exact: float
    other_nll: float


def receptive_field(
    model: Model,
    params: Params,
    prompts: Prompts,
    layers: Collection[int],
    windows: Iterable[int],
    *,
    truncate: bool = False,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> Table[Restricted]:
    """Bounds the receptive field of `layers` at inference to each of `windows` (arXiv 2606.15378).

    Full, windowed, chunked and latent attention, and parallel mixers of these alone, get a window:
    the result equals a model built with that window and the same weights. Native Hybrid Attention
    gets a window too, but its slots still summarise the tokens that leave the window, so only its
    token-level attention is bounded. All other mixers (recurrences, convolutions, slots alone,
    block-sparse attention) have no window; for each query they run on the document's last tokens
    alone, as if the document began there (positions do not change). This is exact and bounds all
    information that the layer receives, but costs T x window.

    The first entry has no bound. A window as wide as the sequence changes nothing.

    Args:
      truncate: run every layer on the last tokens, also layers that have a window. This bounds
        NHA's slots too; for other mixers with a window the result is the same.

    Raises:
      ValueError: if a layer does not exist or a window is below 1.
    """
    names, chosen = mixer_names(model), tuple(sorted(set(layers)))
    windows = tuple(windows)
    wrong = [layer for layer in chosen if not 0 <= layer < len(names)]
    if wrong:
        raise ValueError(
            f"there is no layer {wrong[0]}: the model has layers 0 to {len(names) - 1}"
        )
    if any(window < 1 for window in windows):
        raise ValueError(
            f"a receptive field is at least 1 token, the query's own, not {min(windows)}"
        )
    windowed = map_mixers(model, has_window)
    how = {i: "window" if windowed[i] and not truncate else "context" for i in chosen}
    methods = sorted(set(how.values()))
    first = answers(model, params, prompts, batch=batch, dtype=dtype)
    entries = [Restricted((), (), None, None, *first)]
    for window in windows:
        bounds = tuple(Restriction(i, window, how[i]) for i in chosen)
        found = answers(model, params, prompts, bounds, batch=batch, dtype=dtype)
        mixers = tuple(dict.fromkeys(names[i] for i in chosen))
        entries.append(Restricted(chosen, mixers, window, "+".join(methods), *found))
    return Table(
        "receptive_field",
        "answers' nats and accuracy with layers that see only the last tokens",
        "arXiv 2606.15378",
        tuple(entries),
    )


def _run(subject: Subject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    for layers in subject.restricted:
        yield receptive_field(
            subject.model,
            params,
            subject.prompts,
            layers,
            subject.windows,
            truncate=subject.settings.truncate,
            **subject.options,
        )


RECEPTIVE_FIELD = Probe(
    "receptive_field",
    "answers with layers that see only the last tokens",
    "the answers' nats and accuracy, and the nats of all other tokens, if `--layers` (mixer names or"
    " numbers; each mixer in turn by default) see only the last `--windows` tokens (arXiv"
    " 2606.15378)",
    _run,
)

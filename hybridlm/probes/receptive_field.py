"""What a model can still do when some of its layers are shown only the last tokens."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax.numpy as jnp

from hybridlm.models.mixers.capabilities import has_window
from hybridlm.models.params import Model, Params
from hybridlm.probes.answers import Restriction, answers
from hybridlm.probes.layers import mixer_names, of_each_mixer
from hybridlm.probes.probe import Probe, Subject
from hybridlm.probes.prompts import Prompts
from hybridlm.probes.table import Table


@dataclasses.dataclass(frozen=True)
class Restricted:
    """The answers with a bounded receptive field; see `Answers` for the figures.

    Attributes:
      layers: that were bounded. mixers: the names of theirs.
      window: tokens they saw, the query's own included; None where nothing was bounded.
      how: "window" where they have one, "context" where not, "context+window" for some of each.
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

    Full, windowed, chunked and latent attention, and mixers side by side that are all of these,
    get a window: exactly the model built with it, with the same weights. So does Native Hybrid
    Attention, whose slots then take over earlier what leaves the window: that bounds what it sees
    token by token, not all it knows of. Every other mixer (recurrences, convolutions, slots alone,
    block-sparse attention) has no window; for each query it is run on the last tokens of the
    document alone, as if the document began there (positions stay). That too is exact, and bounds
    everything the layer knows, but costs T x window.

    The first entry is without any bound. A window as wide as the sequence changes nothing.

    Args:
      truncate: run every layer on the last tokens, also those that have a window: NHA's slots
        are then bounded too. For the others both are the same.

    Raises:
      ValueError: for a layer that is not there, or a window below 1.
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
    windowed = of_each_mixer(model, has_window)
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
        "answers' nats and accuracy with layers shown only the last tokens",
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
    "what is left when layers see only the last tokens",
    "the answers' nats and accuracy, and the nats of all other tokens, with `--layers` (mixer names"
    " or numbers; each mixer in turn) shown only the last `--windows` tokens (arXiv 2606.15378)",
    _run,
)

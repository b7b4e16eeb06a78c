"""The distance of each head's query and key weights from their final values."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from hybridlm.models.mixers.capabilities import attends
from hybridlm.models.params import Model, Params
from hybridlm.probes.layers import mixer_names
from hybridlm.probes.probe import Probe, Subject
from hybridlm.probes.table import Head, Table

Weights = dict[int, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class QKDistance:
    """A head's distance from the final checkpoint.

    Attributes:
      step: step of the checkpoint.
      distance: ||Q - Q_final|| + ||K - K_final||, Euclidean norms.
      relative: ||Q - Q_final|| / ||Q_final|| + ||K - K_final|| / ||K_final||.
    """

    step: int | None
    layer: int
    mixer: str
    head: int
    distance: float
    relative: float


def qk_distance(
    model: Model,
    checkpoints: Iterable[tuple[int | None, Params]],
    final: Params,
    heads: Collection[Head] | None = None,
) -> Table[QKDistance]:
    """For each head, the distance of its query and key projections from the final ones.

    The definition is that of arXiv 2606.15378 and its code. Q is the head's slice of the query
    projection and K the slice of its key head, so query heads of a group share K. For latent
    attention Q is the head's slice of the projection that makes queries, and K its slice of the
    latents' projection to keys together with the key part that all heads share. The relative
    distance from weights that are all 0 is NaN.

    Args:
      checkpoints: (step, parameters) pairs; read one at a time.
      final: the parameters to compare with.
      heads: the heads to measure; None for all.
    """
    read = ((step, query_key_weights(model, params)) for step, params in checkpoints)
    return weights_distance(model, read, query_key_weights(model, final), heads)


def weights_distance(
    model: Model,
    checkpoints: Iterable[tuple[int | None, Weights]],
    final: Weights,
    heads: Collection[Head] | None = None,
) -> Table[QKDistance]:
    """`qk_distance` of weights that `query_key_weights` read earlier."""
    names, wanted = mixer_names(model), None if heads is None else set(heads)
    entries = []
    for step, weights in checkpoints:
        for layer, pair in weights.items():
            last = final[layer]
            own = [(now, then) for now, then in zip(pair, last) if then.shape[1]]
            moved = [_norms(now - then) for now, then in own]
            whole = [_norms(then) for _, then in own]
            for h in range(len(moved[0])):
                if wanted is not None and Head(layer, h) not in wanted:
                    continue
                with np.errstate(invalid="ignore", divide="ignore"):
                    relative = sum(m[h] / w[h] for m, w in zip(moved, whole))
                distance = float(sum(m[h] for m in moved))
                entries.append(QKDistance(step, layer, names[layer], h, distance, float(relative)))
    return Table(
        "qk_distance",
        "distance of a head's query and key weights from the final checkpoint's",
        "arXiv 2606.15378",
        tuple(entries),
    )


def query_key_weights(model: Model, params: Params) -> Weights:
    """(q_HP, k_HP) of each layer with attention heads, in float64, by its number."""
    blocks = model.bind(jax.tree.map(np.asarray, params)).blocks()
    return {
        layer: tuple(np.asarray(w, np.float64) for w in block.mixer.query_key_weights())
        for layer, (_, block) in enumerate(blocks)
        if attends(block.mixer)
    }


def _norms(weights_HP: np.ndarray) -> np.ndarray:
    return np.linalg.norm(weights_HP, axis=1)


def _run(subject: Subject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    yield qk_distance(subject.model, [(step, params)], subject.final)


QK_DISTANCE = Probe(
    "qk_distance",
    "distance of a head's query and key weights from the final ones",
    "‖Q − Q_final‖ + ‖K − K_final‖ of the head's slices of the projections, `relative` with each"
    " divided by ‖Q_final‖ and ‖K_final‖; the newest checkpoint is the final one (arXiv 2606.15378)",
    _run,
    reads=(),
)

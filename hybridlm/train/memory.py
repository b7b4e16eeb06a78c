"""Estimates the memory of training from shapes."""

import dataclasses
import math

import jax
import numpy as np
import optax

from hybridlm.models.params import Model
from hybridlm.models.trainable import Trainable


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the whole job, summed over devices; `ema` is the moving average, `teacher` its parameters."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    ema: int = 0
    teacher: int = 0

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


#: Residual streams, and the share of the feed-forward's hidden activations, that are kept.
_KEPT = {"none": (10, 1), "dots": (6, 2 / 3), "full": (1, 0), "unit": (1, 0)}


def estimate_memory(
    model: Model,
    optimizer: optax.GradientTransformation,
    tokens: int,
    remat: str,
    itemsize: int,
    trainable: Trainable = Trainable(),
    ema: bool = False,
) -> MemoryEstimate:
    """A rough estimate from shapes; `hybridlm compile` reports the compiler's figure.

    Args:
      optimizer: its state is traced, not allocated.
      tokens: of one micro-batch. Its activations are kept for the backward pass: per layer and
        token about 10 residual streams and the feed-forward's hidden activations; with full remat,
        one residual stream. To these come the arrays that layers hand on, once a layer. With remat
        of units both count once a unit. What the backward pass recomputes at a time, all
        activations of one layer or of one unit, is not counted.
      remat: the setting `train.remat`.
      itemsize: bytes of an activation.
      trainable: the parameters that have gradients and optimizer state.
      ema: whether these have a moving average.
    """
    config = model.config
    trained = 4 * trainable.count(model)
    state = jax.eval_shape(optimizer.init, trainable.take(model.abstract))
    residuals, share = _KEPT[remat]
    hidden = sum(f.kept_per_token(config.width) for f in config.layer_feedforwards())
    if config.per_layer is not None:  # the vectors, and in a layer the gate and their product
        hidden += 3 * config.depth * config.per_layer.size
    handed_on = sum(math.prod(shape) for shape in config.cross_layer().values())
    layout = config.layout
    units = layout.repeats + len(layout.prefix) + len(layout.suffix)
    times = units if remat == "unit" else config.depth
    kept = (residuals * config.width + handed_on) * times + round(share * hidden)
    return MemoryEstimate(
        parameters=4 * model.count(),
        gradients=trained,
        optimizer=sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state)),
        activations=itemsize * tokens * kept,
        ema=trained if ema else 0,
    )

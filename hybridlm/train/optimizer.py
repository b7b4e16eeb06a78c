"""Optimizers and learning-rate schedules, from optax.

The transformation returns a direction, and the training step multiplies it by minus the learning
rate. The rate depends on the training step, so a skipped update does not shift the schedule.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from hybridlm.errors import ConfigError
from hybridlm.models.params import Model, Params
from hybridlm.models.trainable import Trainable
from hybridlm.settings import globs
from hybridlm.train.settings import OptimizerConfig


class ScheduleNumbers(NamedTuple):
    """The numbers of a schedule, float32. As arguments of the compiled step, they let runs with other
    rates and lengths share its program.

    Attributes:
      peak: the highest rate.
      per_warmup: 1 / steps of the warm-up; 1 without one.
      decay_begin: the last step before the decay.
      per_decay: 1 / steps of the decay; 0 without one.
      floor: the last rate over the peak.
    """

    peak: Any
    per_warmup: Any
    decay_begin: Any
    per_decay: Any
    floor: Any

    @classmethod
    def of(cls, config: OptimizerConfig, steps: int) -> "ScheduleNumbers":
        warmup = config.warmup_steps
        decay = config.decay_steps if config.schedule == "wsd" else steps - warmup
        # A warm-up over all steps ends at the peak, and no step is left for the decay.
        per_decay = 1 / decay if decay else 0
        numbers = (
            config.lr,
            1 / max(warmup, 1),
            steps - decay,
            per_decay,
            config.final_lr_fraction,
        )
        return cls(*map(np.float32, numbers))


def learning_rate(
    config: OptimizerConfig,
    steps: int,
    step: jax.Array,
    multiplier: float | np.ndarray | None = None,
    numbers: ScheduleNumbers | None = None,
) -> jax.Array:
    """The learning rate of update `step` (0-based), float32; it is above 0 at update 0, too.

    Args:
      multiplier: the rate is then, bit for bit, that of a config whose `lr` is so many times as high.
      numbers: of the schedule; None is those of `config`.
    """
    progress = jnp.asarray(step, jnp.float32) + 1
    peak, per_warmup, decay_begin, per_decay, floor = numbers or ScheduleNumbers.of(config, steps)
    warm = jnp.minimum(progress * per_warmup, 1.0)
    done = jnp.clip((progress - decay_begin) * per_decay, 0.0, 1.0)
    shape = {
        "constant": lambda: jnp.float32(1),
        "cosine": lambda: floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * done)),
        "linear": lambda: 1 - (1 - floor) * done,
        "wsd": lambda: 1 - (1 - floor) * done,
    }[config.schedule]()
    if multiplier is not None:
        peak = np.float32(config.lr * multiplier)
    return peak * warm * shape


def descend(
    config: OptimizerConfig,
    steps: int,
    step: jax.Array,
    trained: Params,
    directions: Params,
    multipliers: Params | None,
    numbers: ScheduleNumbers | None,
) -> tuple[Params, jax.Array]:
    """The trained arrays less the learning rate of update `step` times `directions`, and that rate.

    Args:
      directions: from the optimizer, nested as `trained`.
      multipliers: of the rate, from `lr_multipliers`; `numbers` then count for the rate alone.
      numbers: as in `learning_rate`.
    """
    rate = learning_rate(config, steps, step, numbers=numbers)
    if multipliers is None:
        return jax.tree.map(lambda p, d: p - rate * d, trained, directions), rate
    rates = jax.tree.map(lambda m: learning_rate(config, steps, step, m), multipliers)
    return jax.tree.map(lambda p, d, r: p - r * d, trained, directions, rates), rate


def lr_multipliers(config: OptimizerConfig, model: Model, trainable: Trainable) -> Params | None:
    """The multiplier of each trained array (see `Trainable.multipliers`); None if there are none.

    Raises:
      ConfigError: where a glob matches no parameter, or only ones that an earlier entry has.
    """
    if not config.lr_multipliers:
        return None
    by_name = dict.fromkeys(model.by_name(model.abstract), 1.0)
    left = set(by_name)
    for number, entry in enumerate(config.lr_multipliers):
        setting = f"optimizer.lr_multipliers[{number}].parameters"
        found = left.intersection(globs.select(entry.parameters, by_name, setting))
        if not found:
            raise ConfigError(
                f"{setting} is {entry.parameters!r}, and earlier entries match all of these"
                " parameters: put it before them"
            )
        by_name |= dict.fromkeys(found, entry.factor)
        left -= found
    return trainable.multipliers(model, by_name)


def optimizer_of(
    config: OptimizerConfig, model: Model
) -> tuple[Trainable, optax.GradientTransformation]:
    """The parameters of `model` that `config` trains, and their optimizer.

    Raises:
      ConfigError: where globs in `config` do not fit the model's parameter names.
    """
    trainable = Trainable.of(model, config.freeze)
    lr_multipliers(config, model, trainable)  # checked here
    decays, muon = trainable.arrays(model.decay), trainable.arrays(model.muon)
    return trainable, make_optimizer(config, decays, muon)


def make_optimizer(config: OptimizerConfig, decays: Any, muon: Any) -> optax.GradientTransformation:
    """The transformation from clipped gradients to directions, with weight decay added.

    Args:
      decays: a tree like the trained parameters, True where weight decay applies (`Model.decay`).
      muon: the same, True where Muon may update (`Model.muon`); Adam updates the others.
    """
    decay = optax.add_decayed_weights(config.weight_decay, mask=decays)
    adam = optax.chain(optax.scale_by_adam(config.b1, config.b2, config.eps), decay)
    if config.name == "adamw":
        return adam
    if config.name == "adafactor":
        factored = optax.adafactor(None, multiply_by_parameter_scale=False, clipping_threshold=None)
        # optax's adafactor negates the direction, and so does the training step.
        return optax.chain(factored, optax.scale(-1.0), decay)
    by_muon = optax.chain(
        contrib.scale_by_muon(weight_dimension_numbers=_muon_dimensions),
        decay,
        optax.scale((config.muon_lr or config.lr) / config.lr),
    )
    labels = jax.tree.map(lambda chosen: "muon" if chosen else "adam", muon)
    return optax.partition({"muon": by_muon, "adam": adam}, labels)


def _muon_dimensions(params: Any) -> Any:
    """The last two axes are the matrix; layers and heads before them are batch axes."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
        lambda p: p if masked(p) else contrib.MuonDimensionNumbers(p.ndim - 2, p.ndim - 1),
        params,
        is_leaf=masked,
    )

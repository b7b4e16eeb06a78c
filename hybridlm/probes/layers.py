"""Runs a model layer by layer over prompts, taking a measurement in each layer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.models import stack
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.mixers.base import Mixer
from hybridlm.models.mixers.capabilities import attention_heads
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.probes.prompts import Batch, Prompts
from hybridlm.probes.table import Head


class View(NamedTuple):
    """A layer at work: its block, what enters and leaves it (B, T, D), the batch and the context."""

    block: Any
    x_BTD: jax.Array
    y_BTD: jax.Array
    batch: Batch
    context: SequenceContext

    @property
    def mixer_input_BTD(self) -> jax.Array:
        return self.block.normed(self.x_BTD)


Measure = Callable[[View], Any]


def over_layers(
    model: Model,
    params: Params,
    prompts: Prompts,
    measure: Measure,
    *,
    layers: Sequence[int] | None = None,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> dict[int, Any]:
    """What `measure` gives in each layer, by layer, as numpy arrays over all prompts.

    Args:
      measure: a module-level function (programs are kept by it) from a `View` to a pytree of
        arrays whose first axis is the batch's.
      layers: where to measure; None for all. A layer of the repeating unit is measured in all its
        copies if in one; what is not asked for is dropped.
    """
    chosen = tuple(range(model.config.depth)) if layers is None else tuple(sorted(set(layers)))
    program = _measured(model, dtype, measure, chosen)
    found = [jax.device_get(program(params, part)) for part in prompts.batches(batch)]
    if not found:
        return {}
    together = jax.tree.map(lambda *xs: np.concatenate(xs)[: len(prompts)], *found)
    return dict(zip(chosen, together))


@per_model
def _measured(model: Model, dtype: jnp.dtype, measure: Measure, layers: tuple[int, ...]):
    wanted = set(layers)

    @jax.jit
    def run(params: Params, batch: Batch) -> list[Any]:
        module = model.bind(params)

        def look(index: int, block: Any, x_BTD: jax.Array, y_BTD: jax.Array, context: Any) -> Any:
            if wanted.intersection(stack.copies(model.config.layout, index)):
                return measure(View(block, x_BTD, y_BTD, batch, context))
            return None

        _, found = module.walk(module.embed(batch.tokens_BT, dtype), batch.context, look)
        return [found[index] for index in layers]

    return run


def of_each_mixer(model: Model, ask: Callable[[Mixer], Any]) -> tuple[Any, ...]:
    """What `ask` says of each layer's mixer, bottom to top; no parameter is made."""
    answers: list[Any] = []

    def walk() -> None:
        abstract = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), model.abstract)
        answers.extend(ask(block.mixer) for _, block in model.bind(abstract).blocks())

    jax.eval_shape(walk)
    return tuple(answers)


def head_counts(model: Model) -> tuple[int, ...]:
    """Attention heads of each layer."""
    return of_each_mixer(model, attention_heads)


def all_heads(model: Model) -> list[Head]:
    """Every attention head, bottom to top."""
    counts = head_counts(model)
    return [Head(layer, h) for layer, count in enumerate(counts) for h in range(count)]


def mixer_names(model: Model) -> tuple[str, ...]:
    """The mixer's name of each layer, bottom to top."""
    return tuple(model.config.layout.names)

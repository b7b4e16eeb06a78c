"""Runs a model over prompts and takes a measurement in each layer."""

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
    """What a measurement reads: a layer's block, its input x, its output y, batch and context."""

    block: Any
    x_BTD: jax.Array
    y_BTD: jax.Array
    batch: Batch
    context: SequenceContext

    @property
    def mixer_input_BTD(self) -> jax.Array:
        return self.block.mixer_input(self.x_BTD, self.context)


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
    """The results of `measure` by layer, as numpy arrays over all prompts.

    Floating results are NaN for prompts whose residual stream before or after the layer is not finite.

    Args:
      measure: maps a `View` to a pytree of arrays with a leading batch axis. It must be a
        module-level function, because compiled programs are cached by it.
      layers: the layers to measure; None for all. Measuring one layer of the repeating unit
        measures all of its repeats; results of other layers are dropped.
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

        def measure_layer(
            index: int, block: Any, x_BTD: jax.Array, y_BTD: jax.Array, context: Any
        ) -> Any:
            if wanted.intersection(stack.copies(model.config.layout, index)):
                found = measure(View(block, x_BTD, y_BTD, batch, context))
                return _nan_where(_broken(batch, x_BTD, y_BTD), found)
            return None

        _, found = module.map_layers(
            module.embed(batch.tokens_BT, dtype), batch.context, measure_layer
        )
        return [found[index] for index in layers]

    return run


def _broken(batch: Batch, *streams_BTD: jax.Array) -> jax.Array:
    """(B,): whether a token of the prompt, padding apart, is not finite in one of the streams."""
    bad_BT = sum(jnp.any(~jnp.isfinite(x), axis=-1) for x in streams_BTD) > 0
    return jnp.any(bad_BT & (batch.segment_ids_BT != 0), axis=1)


def _nan_where(broken_B: jax.Array, tree: Any) -> Any:
    """NaN for the prompts' figures, so that what a mask or an argmax makes of NaN is no finding."""

    def one(x_B: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x_B.dtype, jnp.floating):
            return x_B
        return jnp.where(broken_B.reshape(-1, *[1] * (x_B.ndim - 1)), jnp.nan, x_B)

    return jax.tree.map(one, tree)


def map_mixers(model: Model, function: Callable[[Mixer], Any]) -> tuple[Any, ...]:
    """`function(mixer)` of each layer, bottom to top; no parameters are made."""
    results: list[Any] = []

    def trace() -> None:
        abstract = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), model.abstract)
        results.extend(function(block.mixer) for _, block in model.bind(abstract).blocks())

    jax.eval_shape(trace)
    return tuple(results)


def head_counts(model: Model) -> tuple[int, ...]:
    """The number of attention heads of each layer, bottom to top."""
    return map_mixers(model, attention_heads)


def all_heads(model: Model) -> list[Head]:
    """Every attention head, bottom to top."""
    counts = head_counts(model)
    return [Head(layer, h) for layer, count in enumerate(counts) for h in range(count)]


def mixer_names(model: Model) -> tuple[str, ...]:
    """The name of each layer's mixer, bottom to top."""
    return tuple(model.config.layout.names)

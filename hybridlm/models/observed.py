"""Parameters that a rule moves after each update, by what the layer observed, and not a gradient.

An example is the bias that balances the load of experts: after each update it moves by the number of
tokens that each expert had. Such a parameter declares its rule in its metadata (`rule=`), and the layer
passes what it saw to `observe`. The observation travels as the parameter's gradient, so it is summed over
layers' repeats, micro-batches and devices as gradients are. The training step takes it out of the gradient
before anything reads that, and applies the rule where it applies the optimizer's update: a skipped update
moves nothing, and neither does a frozen parameter. As a parameter it is saved, sharded and averaged.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Path = tuple[str, ...]


class Rule(Protocol):
    """How a parameter moves. Arrays may have a leading axis, of the layers that share them."""

    def __call__(self, value: jax.Array, observed: jax.Array) -> jax.Array:
        """The parameter after an update, from its observation, summed over the update's batch."""

    def metrics(self, observed: jax.Array) -> Mapping[str, jax.Array]:
        """Scalars to log, of which the step logs the highest of all parameters."""


@jax.custom_vjp
def observe(x: jax.Array, parameter: jax.Array, observation: jax.Array) -> jax.Array:
    """Returns x; makes `observation`, of the parameter's shape, the parameter's gradient.

    `x` must be part of what the loss depends on, and the gradient must reach the parameter here only.
    """
    del parameter, observation
    return x


observe.defvjp(
    lambda x, parameter, observation: (x, (parameter, observation)),
    lambda seen, dx: (dx, seen[1].astype(seen[0].dtype), None),
)


def split(grads: Any, rules: Mapping[Path, Rule]) -> tuple[Any, dict[Path, jax.Array]]:
    """Gradients with 0 for the parameters of `rules`, and their observations.

    Parameters that are not in `grads`, because they are frozen, have none.
    """
    flat = flatten_dict(grads)
    observed = {path: flat[path] for path in rules if path in flat}
    zeros = {path: jnp.zeros_like(x) for path, x in observed.items()}
    return unflatten_dict(flat | zeros), observed


def move(
    params: Any, before: Any, rules: Mapping[Path, Rule], observed: Mapping[Path, jax.Array]
) -> Any:
    """`params` in which those of `rules` are moved from their values in `before`."""
    old = flatten_dict(before)
    moved = {path: rules[path](old[path], seen) for path, seen in observed.items()}
    return unflatten_dict(flatten_dict(params) | moved)


def metrics(rules: Mapping[Path, Rule], observed: Mapping[Path, jax.Array]) -> dict[str, jax.Array]:
    """The highest of each metric of the rules."""
    found: dict[str, jax.Array] = {}
    for path, seen in observed.items():
        for name, value in rules[path].metrics(seen).items():
            found[name] = jnp.maximum(found[name], value) if name in found else value
    return found

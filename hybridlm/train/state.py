"""The train state: a plain pytree, initialised sharded and saved as one checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hybridlm.models.params import Model, Params
from hybridlm.models.trainable import Trainable
from hybridlm.parallel.mesh import replicated, shardings

TrainState = dict[str, Any]


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    trainable: Trainable = Trainable(),
    ema: bool = False,
) -> TrainState:
    """The state of a new run, with initial parameters; see `begin`."""
    return begin(model.init(key), optimizer, trainable, ema)


def begin(
    params: Params,
    optimizer: optax.GradientTransformation,
    trainable: Trainable = Trainable(),
    ema: bool = False,
) -> TrainState:
    """The state before the first update of `params`.

    It has params, opt_state, step (int32) and the guard's running statistics (see `train.guard`);
    with `ema` also the moving average of the trained parameters.
    """
    trained = trainable.take(params)
    return ({"ema": jax.tree.map(jnp.copy, trained)} if ema else {}) | {
        "params": params,
        "opt_state": optimizer.init(trained),
        "step": jnp.int32(0),
        "guard": {
            "norm_mean": jnp.float32(0),
            "norm_square": jnp.float32(0),
            "accepted": jnp.int32(0),
            "skipped": jnp.int32(0),
            "skipped_in_row": jnp.int32(0),
        },
    }


def abstract_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    trainable: Trainable = Trainable(),
    ema: bool = False,
) -> TrainState:
    """The state as ShapeDtypeStructs; optimizer moments have the sharding of their parameter."""
    abstract = jax.eval_shape(
        lambda: init_state(model, optimizer, jax.random.key(0), trainable, ema)
    )
    trained = trainable.take(model.abstract)
    axes = trainable.arrays(model.axes)
    of_params: dict[tuple[str, tuple[int, ...]], Any] = {}
    for shapes, names in ((model.abstract, model.axes), (trained, axes)):
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        places = jax.tree.leaves(shardings(mesh, shapes, names))
        for (path, x), place in zip(leaves, places, strict=True):
            of_params[jax.tree_util.keystr(path), x.shape] = place

    def place(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        for start in range(len(path)):
            sharding = of_params.get((jax.tree_util.keystr(path[start:]), x.shape))
            if sharding is not None:
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))

    return jax.tree_util.tree_map_with_path(place, abstract)

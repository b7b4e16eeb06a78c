"""The train state: a plain pytree, initialised sharded and saved as one checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hybridlm.models.params import Model
from hybridlm.parallel.mesh import replicated, shardings

TrainState = dict[str, Any]


def init_state(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """params, opt_state, step (int32) and the guard's running statistics (see `train.guard`)."""
    params = model.init(key)
    return {
        "params": params,
        "opt_state": optimizer.init(params),
        "step": jnp.int32(0),
        "guard": {
            "norm_mean": jnp.float32(0),
            "norm_square": jnp.float32(0),
            "accepted": jnp.int32(0),
            "skipped": jnp.int32(0),
            "skipped_in_row": jnp.int32(0),
        },
    }


def abstract_state(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs; optimizer moments have the sharding of their parameter."""
    abstract = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0)))
    of_params = {
        jax.tree_util.keystr(path): (x.shape, s)
        for (path, x), s in zip(
            jax.tree_util.tree_leaves_with_path(model.abstract),
            jax.tree.leaves(shardings(mesh, model.abstract, model.axes)),
        )
    }

    def place(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        for start in range(len(path)):
            shape, sharding = of_params.get(jax.tree_util.keystr(path[start:]), (None, None))
            if shape == x.shape:
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))

    return jax.tree_util.tree_map_with_path(place, abstract)

"""One step of blockwise distillation: each layer's mixer is clipped, skipped and updated on its own.

So the result of a layer depends on the data, on the teacher and on itself, and on no other layer: a layer
that diverges, or whose parameters are NaN, changes no bit of another.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from hybridlm.distill import blockwise
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.trainable import Trainable
from hybridlm.train import guard
from hybridlm.train.optimizer import descend, lr_multipliers
from hybridlm.train.settings import OptimizerConfig, TrainConfig
from hybridlm.train.state import TrainState
from hybridlm.train.step import Batch, Metrics, moved_average

Path = tuple[str, ...]


def make_blockwise_step(
    model: Model,
    teacher: Model,
    optimizer: optax.GradientTransformation,
    train: TrainConfig,
    schedule: OptimizerConfig,
    dtype: jnp.dtype,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step of `teacher.objective` "blockwise", to be jitted with its state donated.

    It takes the batch of `make_train_step`, with the teacher's parameters as `teacher`. A layer's loss
    is the mean squared error of its mixer's output, over tokens without padding and over channels.
    `optimizer.clip_norm` clips each layer's gradient by its own norm. A layer whose error or gradient is
    not finite is not updated; a step in which that holds for all is skipped as in training.
    `train.remat` changes nothing: no activations are kept from one layer to the next.

    Metrics, float32 scalars: `loss`, the mean of the layers' squared errors, and `relative_error`, that
    of squared error over the mean square of the teacher's output; both over layers that are finite.
    `mse_layer_N` of each distilled layer; `grad_norm` of all finite layers together; `layers_skipped`
    (layers in this step); and `learning_rate`, `skipped`, `skipped_in_row` and `targets` (tokens here).

    Args:
      model: the student.
      teacher: with its layers stacked as the student's.
    """
    layers = blockwise.distilled_layers(teacher.config, model.config)
    trainable = Trainable.of(model, schedule.freeze)
    multipliers = lr_multipliers(schedule, model, trainable)
    rows = Rows.of(model, trainable)
    chosen_L = np.isin(np.arange(model.config.depth), layers)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        numbers, teacher_params = batch.get("schedule"), batch["teacher"]
        batch = {n: x for n, x in batch.items() if n not in ("schedule", "teacher")}
        trained = trainable.take(state["params"])
        real = jnp.sum(batch["segment_ids"] != 0)
        elements = (jnp.maximum(real, 1) * model.config.width).astype(jnp.float32)

        def grads_and_sums(micro: Batch) -> tuple[Params, blockwise.LayerSums]:
            sums, grads = blockwise.gradients(
                teacher.bind(teacher_params),
                model.bind(state["params"]),
                layers,
                micro["tokens"],
                SequenceContext(micro["segment_ids"], micro["positions"]),
                dtype,
            )
            arrays = blockwise.part_of(grads, trainable.arrays(state["params"]))
            return trainable.cut(arrays), sums

        def accumulate(carry: Any, micro: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, grads_and_sums(micro)), None

        if batch["tokens"].shape[0] == 1:
            grads, sums = grads_and_sums(jax.tree.map(lambda x: x[0], batch))
        else:
            zero_L = jnp.zeros(model.config.depth, jnp.float32)
            zeros = (jax.tree.map(jnp.zeros_like, trained), blockwise.LayerSums(zero_L, zero_L))
            (grads, sums), _ = jax.lax.scan(accumulate, zeros, batch)

        error_L = sums.error / elements
        relative_L = sums.error / jnp.maximum(sums.power, 1e-30)
        norm_L = jnp.sqrt(rows.square_sums(grads)) / elements
        ok_L = jnp.isfinite(error_L) & jnp.isfinite(norm_L) & chosen_L
        scale_L = jnp.ones_like(norm_L)
        if schedule.clip_norm is not None:
            scale_L = jnp.minimum(1.0, schedule.clip_norm / jnp.maximum(norm_L, 1e-12))

        def mean(x_L: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(ok_L, x_L, 0)) / jnp.sum(ok_L)  # NaN where no layer is finite

        loss = mean(error_L)
        grad_norm = jnp.sqrt(jnp.sum(jnp.where(ok_L, jnp.square(norm_L), 0)))
        ok, guard_state = guard.check_update(state["guard"], loss, grad_norm, None)
        ok_L &= ok

        grads = rows.map(
            lambda g, ok, scale: jnp.where(ok, g * scale, 0), ok_L, scale_L / elements, tree=grads
        )
        directions, opt_state = optimizer.update(grads, state["opt_state"], trained)
        updated, rate = descend(
            schedule, train.steps, state["step"], trained, directions, multipliers, numbers
        )

        kept = rows.where(ok_L, ok, updated, trained)
        new_state = {
            "params": trainable.put(state["params"], kept),
            "opt_state": rows.where(ok_L, ok, opt_state, state["opt_state"]),
            "step": state["step"] + 1,
            "guard": guard_state,
        }
        if train.ema_decay is not None:
            moved = moved_average(state["ema"], kept, train.ema_decay, guard_state["accepted"])
            new_state["ema"] = rows.where(ok_L, ok, moved, state["ema"])
        return new_state, {
            "loss": loss,
            "relative_error": mean(relative_L),
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "skipped": guard_state["skipped"],
            "skipped_in_row": guard_state["skipped_in_row"],
            "layers_skipped": jnp.sum(~ok_L & chosen_L),
            "targets": real.astype(jnp.float32),
            **{f"mse_layer_{i}": error_L[i] for i in layers},
        }

    return train_step


class Rows:
    """Which layer each row of a trained array belongs to.

    Attributes:
      layers: by path, the layers of the rows of an array that layers share, int (rows,); the number of
        the layer of another array.
      shapes: of the trained arrays, by path.
    """

    def __init__(self, layers: dict[Path, Any], shapes: dict[Path, tuple[int, ...]], depth: int):
        self.layers, self.shapes, self.depth = layers, shapes, depth

    @classmethod
    def of(cls, model: Model, trainable: Trainable) -> "Rows":
        layers: dict[Path, Any] = {}
        part = flatten_dict(trainable.take(model.abstract))
        for path, names in flatten_dict(model.names).items():
            if path not in part:
                continue
            numbers = np.array([int(name.split(".")[1]) for name in names])
            if path[0] == "unit":
                layers[path] = numbers[list(trainable.rows.get(path, range(len(numbers))))]
            else:
                layers[path] = int(numbers[0])
        return cls(layers, {path: x.shape for path, x in part.items()}, model.config.depth)

    def square_sums(self, tree: Params) -> jax.Array:
        """The sum of squares of each layer's arrays, (L,) float32."""
        total_L = jnp.zeros(self.depth, jnp.float32)
        for path, x in flatten_dict(tree).items():
            of = self.layers[path]
            axes = tuple(range(0 if isinstance(of, int) else 1, x.ndim))
            total_L = total_L.at[of].add(jnp.sum(jnp.square(x.astype(jnp.float32)), axes))
        return total_L

    def map(self, function: Callable[..., jax.Array], *by_layer: jax.Array, tree: Params) -> Params:
        """`function(array, *numbers of its layers)` of each array of a tree like the trained part."""

        def one(path: Any, x: jax.Array) -> jax.Array:
            return function(x, *(self._of(_names(path), x, x_L) for x_L in by_layer))

        return jax.tree_util.tree_map_with_path(one, tree)

    def where(self, ok_L: jax.Array, ok: jax.Array, new: Any, old: Any) -> Any:
        """The rows of `new` whose layer is ok, and those of `old`.

        Arrays that are like no trained one, such as an optimizer's count, are new if `ok`.
        """

        def one(path: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            names = _names(path)
            suffixes = (names[i:] for i in range(len(names)))
            of = next((s for s in suffixes if self.shapes.get(s) == x.shape), None)
            return jnp.where(ok if of is None else self._of(of, x, ok_L), x, y)

        return jax.tree_util.tree_map_with_path(one, new, old)

    def _of(self, path: Path, x: jax.Array, by_layer: jax.Array) -> jax.Array:
        of = self.layers[path]
        values = by_layer[of]
        return values if isinstance(of, int) else values.reshape(-1, *[1] * (x.ndim - 1))


def _names(path: Any) -> Path:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)

"""Sends tokens to their experts and back: sorted by expert, on a mesh too, and none is dropped.

Experts are split over the mesh axis `expert`, which also splits the batch. Its devices send each other
the tokens by all-to-all (`hybridlm.parallel.expert_exchange`).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from hybridlm.parallel.axes import RULES, active_mesh_shape, spec
from hybridlm.parallel.expert_exchange import EXPERT, FSDP, Exchange, exchanged
from hybridlm.parallel.expert_rows import collect, sort_rows, spread

(TENSOR,) = RULES["mlp"]
Arrays = Mapping[str, jax.Array]
#: (rows sorted by expert, rows of each expert, parameters, split dimension by parameter) -> rows.
Run = Callable[[jax.Array, jax.Array, Arrays, Mapping[str, tuple[int, str]]], jax.Array]


class Mixture(NamedTuple):
    """What is the same on every device.

    Attributes:
      run: the experts; it treats each row by itself.
      experts: their number, of which parameters have a row each.
      axes: the logical axes of each parameter.
      weigh_inputs: multiply what experts read by the weights (Llama 4), and not what they give.
    """

    run: Run
    experts: int
    axes: Mapping[str, tuple[str, ...]]
    weigh_inputs: bool = False


def mix_experts(
    mixture: Mixture,
    x_BTD: jax.Array,
    chosen_BTK: jax.Array,
    weights_BTK: jax.Array,
    parameters: Arrays,
) -> jax.Array:
    """The weighted sum of each token's experts, (B, T, D).

    Args:
      chosen_BTK: int32, different experts of a token; `mixture.experts` and more is none, which costs
        nothing and adds nothing.
      weights_BTK: their weights, at least float32.
    """
    mesh = active_mesh_shape()
    if mesh is None or not _divides(x_BTD.shape, mesh):
        return _on_device(mixture, {}, x_BTD, chosen_BTK, weights_BTK, parameters)
    shards = mesh[EXPERT]
    split = {
        name: (names.index("expert_embed"), FSDP)
        for name, names in mixture.axes.items()
        if "expert_embed" in names and mesh[FSDP] > 1
    }

    def on_shard(x_BTD, chosen_BTK, weights_BTK, parameters):
        if shards == 1:
            y_BTD = _on_device(mixture, split, x_BTD, chosen_BTK, weights_BTK, parameters)
            return y_BTD[None]
        exchange = Exchange(
            lambda *rows: mixture.run(*rows, split),
            mixture.experts // shards,
            shards,
            mixture.weigh_inputs,
        )
        by_token = (a.reshape(-1, a.shape[-1]) for a in (x_BTD, chosen_BTK, weights_BTK))
        return exchanged(exchange, *by_token, parameters).reshape(1, *x_BTD.shape)

    batch, time = RULES["batch"], RULES["time"]
    by_token = PartitionSpec(batch, time, None)
    partial_BTD = jax.shard_map(
        on_shard,
        in_specs=(by_token,) * 3 + ({n: spec(mixture.axes[n]) for n in parameters},),
        out_specs=PartitionSpec(TENSOR, batch, time, None),
        check_vma=False,
    )(x_BTD, chosen_BTK, weights_BTK, dict(parameters))
    # Devices along `tensor` hold parts of the hidden layer: this is the sum over them.
    return jnp.sum(partial_BTD, axis=0)


def _divides(shape: tuple[int, ...], mesh: Mapping[str, int]) -> bool:
    return all(
        size % math.prod(mesh[axis] for axis in RULES[name]) == 0
        for name, size in zip(("batch", "time"), shape)
    )


def is_first_of_tensor() -> jax.Array | bool:
    """Whether this device adds what the sum over the axis `tensor` must have once."""
    manual = TENSOR in jax.sharding.get_abstract_mesh().manual_axes
    return jax.lax.axis_index(TENSOR) == 0 if manual else True


def _on_device(
    mixture: Mixture,
    split: Mapping[str, tuple[int, str]],
    x_BTD: jax.Array,
    chosen_BTK: jax.Array,
    weights_BTK: jax.Array,
    parameters: Arrays,
) -> jax.Array:
    """The weighted sum of each token's experts, by a device that has all of them."""
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    chosen_NK, weights_NK = (a.reshape(x_ND.shape[0], -1) for a in (chosen_BTK, weights_BTK))
    places = sort_rows(chosen_NK, mixture.experts)
    rows_XD = spread(x_ND, places)
    if mixture.weigh_inputs:
        weights_X = weights_NK.reshape(-1).at[places.order_X].get(unique_indices=True)
        rows_XD = (rows_XD * weights_X[:, None]).astype(x_ND.dtype)
    outputs_XD = mixture.run(rows_XD, places.sizes_E, parameters, split)
    outputs_NKD = collect(outputs_XD, places)
    if mixture.weigh_inputs:
        y_ND = jnp.sum(outputs_NKD, axis=1, dtype=weights_NK.dtype)
    else:
        y_ND = jnp.sum(outputs_NKD * weights_NK[..., None], axis=1)
    return y_ND.astype(x_BTD.dtype).reshape(x_BTD.shape)

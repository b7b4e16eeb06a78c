"""Sends tokens to their experts and back: sorted by expert, on a mesh too, and none is dropped.

Experts are split over the mesh axis `expert`, which also splits the batch. Their devices gather the
tokens of all of them, run the experts that they hold on the tokens that chose those, and scatter the
sums back. Each device sends a token's D values to the S - 1 others and receives as many sums. An
all-to-all of what is needed sends K (S - 1) / S times them, but buffers of a fixed size must hold the
worst case, min(K, E / S) rows for each token and device, which is never less than this.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from hybridlm.parallel.axes import RULES, active_mesh_shape, spec

(EXPERT,) = RULES["experts"]
(FSDP,) = RULES["expert_embed"]
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
        return _on_device(
            mixture, mixture.experts, 0, {}, x_BTD, chosen_BTK, weights_BTK, parameters
        )
    shards = mesh[EXPERT]
    split = {
        name: (names.index("expert_embed"), FSDP)
        for name, names in mixture.axes.items()
        if "expert_embed" in names and mesh[FSDP] > 1
    }

    def on_shard(x_BTD, chosen_BTK, weights_BTK, parameters):
        own = mixture.experts // shards
        first = own * jax.lax.axis_index(EXPERT)
        tokens = x_BTD, chosen_BTK, weights_BTK
        if shards > 1:
            tokens = (jax.lax.all_gather(a, EXPERT, axis=0, tiled=True) for a in tokens)
        y_BTD = _on_device(mixture, own, first, split, *tokens, parameters)
        if shards > 1:
            y_BTD = jax.lax.psum_scatter(y_BTD, EXPERT, scatter_dimension=0, tiled=True)
        return y_BTD[None]

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
    own: int,
    first: jax.Array | int,
    split: Mapping[str, tuple[int, str]],
    x_BTD: jax.Array,
    chosen_BTK: jax.Array,
    weights_BTK: jax.Array,
    parameters: Arrays,
) -> jax.Array:
    """The weighted sum over those of the tokens' experts that are among the `own` from `first` on."""
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    chosen_NK, weights_NK = (a.reshape(x_ND.shape[0], -1) for a in (chosen_BTK, weights_BTK))
    places = _sort(chosen_NK - first, own)
    rows_XD = _spread(x_ND, places)
    if mixture.weigh_inputs:
        weights_X = weights_NK.reshape(-1).at[places.order_X].get(unique_indices=True)
        rows_XD = (rows_XD * weights_X[:, None]).astype(x_ND.dtype)
    outputs_XD = mixture.run(rows_XD, places.sizes_E, parameters, split)
    outputs_NKD = _collect(outputs_XD, places)
    if mixture.weigh_inputs:
        y_ND = jnp.sum(outputs_NKD, axis=1, dtype=weights_NK.dtype)
    else:
        y_ND = jnp.sum(outputs_NKD * weights_NK[..., None], axis=1)
    return y_ND.astype(x_BTD.dtype).reshape(x_BTD.shape)


class _Places(NamedTuple):
    """Where a pair of a token and one of its experts stands among the rows.

    Attributes:
      order_X: the pair of each row, N * K at most; rows are sorted by expert and then by token.
      places_NK: the row of each pair; X and more for pairs without one.
      sizes_E: rows of each expert; rows after the last expert's belong to none.
    """

    order_X: jax.Array
    places_NK: jax.Array
    sizes_E: jax.Array


def _sort(chosen_NK: jax.Array, experts: int) -> _Places:
    """Places for the pairs whose expert is one of `experts`."""
    tokens, top_k = chosen_NK.shape
    here_NK = (chosen_NK >= 0) & (chosen_NK < experts)
    chosen_P = jnp.where(here_NK, chosen_NK, experts).reshape(-1)
    order_P = jnp.argsort(chosen_P, stable=True)
    index_P = jnp.arange(tokens * top_k, dtype=jnp.int32)
    places_P = jnp.zeros_like(index_P).at[order_P].set(index_P, unique_indices=True)
    rows = tokens * min(top_k, experts)  # a token's experts differ
    places_NK = jnp.where(here_NK, places_P.reshape(tokens, top_k), rows)
    sizes_E = jnp.sum(jax.nn.one_hot(chosen_P, experts, dtype=jnp.int32), axis=0)
    return _Places(order_P[:rows], places_NK, sizes_E)


@jax.custom_vjp
def _spread(x_ND: jax.Array, places: _Places) -> jax.Array:
    """The token of each row. Its gradient is a gather, `_collect`, and not a scatter."""
    return x_ND[places.order_X // places.places_NK.shape[1]]


@jax.custom_vjp
def _collect(rows_XD: jax.Array, places: _Places) -> jax.Array:
    """The row of each pair, (N, K, D); 0 for pairs without one."""
    rows = rows_XD.shape[0]
    found_NKD = rows_XD[jnp.minimum(places.places_NK, rows - 1)]
    return jnp.where((places.places_NK < rows)[..., None], found_NKD, 0)


def _collect_pairs(pairs_NKD: jax.Array, places: _Places) -> jax.Array:
    return pairs_NKD.reshape(-1, pairs_NKD.shape[-1])[places.order_X]


_spread.defvjp(
    lambda x_ND, places: (_spread(x_ND, places), places),
    lambda places, d_XD: (jnp.sum(_collect(d_XD, places), axis=1), None),
)
_collect.defvjp(
    lambda rows_XD, places: (_collect(rows_XD, places), places),
    lambda places, d_NKD: (_collect_pairs(d_NKD, places), None),
)

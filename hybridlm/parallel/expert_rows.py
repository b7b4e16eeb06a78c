"""Rows sorted by expert: where each pair of a token and one of its experts stands among them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Places(NamedTuple):
    """Where a pair of a token and one of its experts stands among the rows.

    Attributes:
      order_X: the pair of each row, N * K at most; rows are sorted by expert and then by token.
      places_NK: the row of each pair; X and more for pairs without one.
      sizes_E: rows of each expert; rows after the last expert's belong to none.
    """

    order_X: jax.Array
    places_NK: jax.Array
    sizes_E: jax.Array


def sort_rows(chosen_NK: jax.Array, experts: int) -> Places:
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
    return Places(order_P[:rows], places_NK, sizes_E)


@jax.custom_vjp
def spread(x_ND: jax.Array, places: Places) -> jax.Array:
    """The token of each row. Its gradient is a gather, `collect`, and not a scatter."""
    return x_ND[places.order_X // places.places_NK.shape[1]]


@jax.custom_vjp
def collect(rows_XD: jax.Array, places: Places) -> jax.Array:
    """The row of each pair, (N, K, D); 0 for pairs without one."""
    return take_rows(rows_XD, places.places_NK)


def take_rows(rows_XD: jax.Array, places_NK: jax.Array) -> jax.Array:
    """The rows at `places_NK`, (N, K, D); 0 for places after the last row."""
    rows = rows_XD.shape[0]
    found_NKD = rows_XD[jnp.minimum(places_NK, rows - 1)]
    return jnp.where((places_NK < rows)[..., None], found_NKD, 0)


def _collect_pairs(pairs_NKD: jax.Array, places: Places) -> jax.Array:
    return pairs_NKD.reshape(-1, pairs_NKD.shape[-1])[places.order_X]


spread.defvjp(
    lambda x_ND, places: (spread(x_ND, places), places),
    lambda places, d_XD: (jnp.sum(collect(d_XD, places), axis=1), None),
)
collect.defvjp(
    lambda rows_XD, places: (collect(rows_XD, places), places),
    lambda places, d_NKD: (_collect_pairs(d_NKD, places), None),
)

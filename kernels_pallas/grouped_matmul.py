"""Products of sorted rows with the matrix of their group: the experts of a mixture of experts.

Rows are sorted by group, and a group may have any number of them, so no row is dropped and each is
multiplied by one matrix. On TPUs and GPUs this is `jax.lax.ragged_dot`. On CPUs jax 0.11 lowers
`ragged_dot` to a product of all rows with all matrices, with masks: 16 times the FLOPs for 16 groups
and a temporary array of as many copies of the rows. There this module walks over blocks of rows, each
of one group.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels_pallas import dispatch

BLOCK = 64  # rows of a block on CPUs

_CONTRACT_ROWS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(
    x_ND: Float[Array, "N D"],
    w_EDF: Float[Array, "E ..."],
    sizes_E: Int[Array, "E"],
    split: tuple[int, str] | None = None,
) -> Float[Array, "N F"]:
    """Multiplies each row by the matrix of its group.

    Arguments:
      x_ND: rows, those of group 0 first, then those of group 1, and so on.
      w_EDF: a matrix for each group. It is cast to the dtype of `x_ND`; its gradient is summed in, and
        has, its own dtype.
      sizes_E: int32, the number of rows of each group. Rows after the last group have an output and a
        gradient of 0, whatever they hold.
      split: (dimension of `w_EDF`, mesh axis) if the devices along that axis of a `shard_map` hold a
        part of each matrix. The parts are gathered after the cast, once for each pass, and the
        gradient is scattered back (ZeRO-3).

    Returns rows in the dtype of `x_ND`. A row that is not finite changes no other row's output or
    gradient; it spoils the gradient of its group's matrix, as it would that of a dense layer.
    """
    product, _ = _forms()
    y_NF = product(x_ND, _whole(w_EDF, x_ND.dtype, split), sizes_E)
    return _in_groups(y_NF, sizes_E)


def _forward(x_ND, w_EDF, sizes_E, split):
    return grouped_matmul(x_ND, w_EDF, sizes_E, split), (x_ND, w_EDF, sizes_E)


def _backward(split, residuals, dy_NF):
    x_ND, w_EDF, sizes_E = residuals
    product, outer = _forms()
    w_EFD = _whole(w_EDF, x_ND.dtype, split).swapaxes(1, 2)
    dx_ND = _in_groups(product(dy_NF, w_EFD, sizes_E), sizes_E)
    dw_EDF = outer(x_ND, dy_NF, sizes_E, w_EDF.dtype)
    if split is not None:
        dimension, axis = split
        dw_EDF = jax.lax.psum_scatter(dw_EDF, axis, scatter_dimension=dimension, tiled=True)
    return dx_ND, dw_EDF, None


grouped_matmul.defvjp(_forward, _backward)


def one_hot_groups(rows: int, sizes_E: Int[Array, "E"]) -> Bool[Array, "N E"]:
    """True at the group of each row; rows after the last group have none."""
    index_N1, ends_1E = jnp.arange(rows)[:, None], jnp.cumsum(sizes_E)[None]
    return (index_N1 >= ends_1E - sizes_E[None]) & (index_N1 < ends_1E)


def _whole(w_EDF: Array, dtype: jnp.dtype, split: tuple[int, str] | None) -> Array:
    w_EDF = w_EDF.astype(dtype)
    if split is None:
        return w_EDF
    dimension, axis = split
    return jax.lax.all_gather(w_EDF, axis, axis=dimension, tiled=True)


def _in_groups(y_NF: Array, sizes_E: Array) -> Array:
    """0 for the rows after the last group, which no form defines."""
    inside_N = jnp.arange(y_NF.shape[0]) < jnp.sum(sizes_E)
    return jnp.where(inside_N[:, None], y_NF, 0)


def _forms() -> tuple[Callable[..., Array], Callable[..., Array]]:
    """(rows times matrices, the gradient of the matrices) for the platform of this trace."""
    if dispatch.target().platform == "cpu":
        return _blocked_product, _blocked_outer
    return _ragged_product, _ragged_outer


def _ragged_product(x_ND: Array, w_EDF: Array, sizes_E: Array) -> Array:
    return jax.lax.ragged_dot(x_ND, w_EDF, sizes_E, preferred_element_type=x_ND.dtype)


def _ragged_outer(x_ND: Array, dy_NF: Array, sizes_E: Array, dtype: jnp.dtype) -> Array:
    return jax.lax.ragged_dot_general(
        x_ND, dy_NF, sizes_E, _CONTRACT_ROWS, preferred_element_type=dtype
    )


def _walk(rows: int, sizes_E: Array, carry: Array, visit: Callable[..., Array]) -> Array:
    """`visit(group, first row, end of the group, carry)` for each block of rows, in order."""
    size = min(BLOCK, rows)
    ends_E = jnp.cumsum(sizes_E)
    blocks_E = -(-sizes_E // size)
    last_E = jnp.cumsum(blocks_E)

    def step(i: Array, carry: Array) -> Array:
        group = jnp.searchsorted(last_E, i, side="right")
        begin = ends_E[group] - sizes_E[group]
        first = begin + (i - (last_E[group] - blocks_E[group])) * size
        return visit(group, first, ends_E[group], carry)

    return jax.lax.fori_loop(0, last_E[-1], step, carry)


def _padded(x_ND: Array) -> Array:
    """With rows for a block that begins at the last one."""
    return jnp.pad(x_ND, ((0, min(BLOCK, x_ND.shape[0])), (0, 0)))


def _blocked_product(x_ND: Array, w_EDF: Array, sizes_E: Array) -> Array:
    rows = x_ND.shape[0]
    x_ND, size = _padded(x_ND), min(BLOCK, rows)

    def visit(group: Array, first: Array, end: Array, y_NF: Array) -> Array:
        del end  # rows of the next group are overwritten by its own blocks, which follow
        x_CD = jax.lax.dynamic_slice_in_dim(x_ND, first, size)
        return jax.lax.dynamic_update_slice_in_dim(y_NF, x_CD @ w_EDF[group], first, 0)

    empty = jnp.zeros((x_ND.shape[0], w_EDF.shape[2]), x_ND.dtype)
    return _walk(rows, sizes_E, empty, visit)[:rows]


def _blocked_outer(x_ND: Array, dy_NF: Array, sizes_E: Array, dtype: jnp.dtype) -> Array:
    rows = x_ND.shape[0]
    x_ND, dy_NF, size = _padded(x_ND), _padded(dy_NF), min(BLOCK, rows)

    def visit(group: Array, first: Array, end: Array, dw_EDF: Array) -> Array:
        inside_C1 = (first + jnp.arange(size) < end)[:, None]
        x_CD, dy_CF = (
            jnp.where(inside_C1, jax.lax.dynamic_slice_in_dim(a, first, size), 0)
            for a in (x_ND, dy_NF)
        )
        update_DF = jnp.einsum("cd,cf->df", x_CD, dy_CF, preferred_element_type=dtype)
        return dw_EDF.at[group].add(update_DF)

    zeros = jnp.zeros((sizes_E.shape[0], x_ND.shape[1], dy_NF.shape[1]), dtype)
    return _walk(rows, sizes_E, zeros, visit)

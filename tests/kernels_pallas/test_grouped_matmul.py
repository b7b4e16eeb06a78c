"""Rows are multiplied by their group's matrix, whatever the sizes of the groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import dispatch
from kernels_pallas.grouped_matmul import BLOCK, grouped_matmul


def draw(seed, dtype):
    rng = np.random.default_rng(seed)
    groups, d, f = rng.integers(1, 6), rng.integers(1, 9), rng.integers(1, 9)
    sizes = rng.choice([0, 1, 5, BLOCK, BLOCK + 1, 2 * BLOCK], size=groups)
    rows = int(sizes.sum() + rng.choice([0, 1, 40])) or 1
    x, w, dy = (
        jnp.asarray(rng.standard_normal(shape), dtype)
        for shape in ((rows, d), (groups, d, f), (rows, f))
    )
    return x, w, jnp.asarray(sizes, jnp.int32), dy


def by_loop(x, w, sizes):
    y, first = np.zeros((len(x), w.shape[2])), 0
    for matrix, size in zip(np.asarray(w), np.asarray(sizes)):
        y[first : first + size] = np.asarray(x)[first : first + size] @ matrix
        first += size
    return y


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # "gpu": `ragged_dot`, here as jax lowers it
@pytest.mark.parametrize("seed", range(4))
def test_it_is_a_loop_over_groups_forward_and_backward(seed, platform):
    with jax.enable_x64(True), dispatch.kernels_for(platform):
        x, w, sizes, dy = draw(seed, jnp.float64)
        y, back = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, w)
        dx, dw = back(dy)
    np.testing.assert_allclose(y, by_loop(x, w, sizes), atol=1e-12)
    np.testing.assert_allclose(dx, by_loop(dy, w.swapaxes(1, 2), sizes), atol=1e-12)
    first = 0
    for size, found in zip(np.asarray(sizes), np.asarray(dw)):
        rows = slice(first, first + size)
        np.testing.assert_allclose(found, np.asarray(x)[rows].T @ np.asarray(dy)[rows], atol=1e-11)
        first += size


def test_gradients_of_matrices_are_summed_in_their_own_dtype():
    x, w, sizes, dy = draw(1, jnp.float32)
    half = x.astype(jnp.bfloat16)
    y, back = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), half, w)
    dx, dw = back(dy.astype(y.dtype))
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    _, back = jax.vjp(
        lambda x, w: grouped_matmul(x, w, sizes),
        half.astype(jnp.float32),
        w,
    )
    expected = back(dy.astype(y.dtype).astype(jnp.float32))[1]
    np.testing.assert_allclose(dw, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", [0, 70, 130])
def test_a_row_that_is_not_finite_spoils_its_own_output_only(row):
    rng = np.random.default_rng(0)
    sizes = jnp.asarray([66, 3, 50], jnp.int32)  # rows from 119 on belong to no group
    x = jnp.asarray(rng.standard_normal((140, 4)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((3, 4, 5)), jnp.float32)
    bad = x.at[row].set(jnp.nan)
    pull = jax.jit(lambda x: jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, w)[1](w_ct))
    w_ct = jnp.asarray(rng.standard_normal((140, 5)), jnp.float32)
    y, clean = grouped_matmul(bad, w, sizes), grouped_matmul(x, w, sizes)
    others = np.arange(140) != row
    np.testing.assert_array_equal(np.asarray(y)[others], np.asarray(clean)[others])
    assert np.isnan(y[row]).all() == (row < 119)
    (dx, dw), (clean_dx, clean_dw) = pull(bad), pull(x)
    np.testing.assert_array_equal(dx, clean_dx)
    spoilt = {0: [0], 70: [2], 130: []}[row]
    for e in range(3):
        if e in spoilt:
            assert np.isnan(dw[e]).any()
        else:
            np.testing.assert_array_equal(dw[e], clean_dw[e])

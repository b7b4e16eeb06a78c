"""The compatibility module's primitives do what their docstrings say, interpreted on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas import mosaic_gpu as mg

ROWS, SIZE = 64, 128


def grams(x, repeats, scale, racing=False):
    """`repeats` times the causal part of `scale * x x^T`, times x, of each block of 64 rows."""

    def body(x_ref, repeats_ref, scale_ref, out_ref, x_tile, out_tile, scales, ready):
        block = mg.index("block")
        rows = pl.ds(block * ROWS, ROWS)
        mg.load(x_ref.at[rows], x_tile, ready.at[0])
        mg.load(scale_ref.at[rows], scales, ready.at[0])
        if not racing:
            mg.wait(ready.at[0])
        shape = ROWS, ROWS

        def repeat(_, total):
            product = mg.matmul(x_tile, mg.transposed(x_tile))
            product *= mg.along_rows(mg.of_rows(scales), shape)
            product *= mg.along_columns(mg.of_columns(scales), shape)
            product = jnp.where(mg.iota(shape, 0) >= mg.iota(shape, 1), product, 0.0)
            return mg.matmuls((total, product.astype(jnp.bfloat16), x_tile))[0]

        total = jax.lax.fori_loop(0, repeats_ref[block], repeat, mg.zeros((ROWS, SIZE)))
        out_tile[...] = total.astype(jnp.bfloat16)
        mg.publish()
        mg.store(out_tile, out_ref.at[rows])
        mg.wait_for_stores()

    return mg.launch(
        body,
        x,
        repeats,
        scale,
        name="grams",
        grid=dict(block=x.shape[0] // ROWS),
        outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        scratch=dict(
            x_tile=mg.tile((ROWS, SIZE)),
            out_tile=mg.tile((ROWS, SIZE)),
            scales=mg.vector((ROWS,)),
            ready=mg.barriers(1, arrivals=2),
        ),
        interpret=plgpu.InterpretGPUParams(detect_races=True),
    )[0]


def operands():
    rng = np.random.default_rng(0)
    x = jnp.asarray(0.1 * rng.standard_normal((2 * ROWS, SIZE)), jnp.bfloat16)
    scale = jnp.asarray(rng.standard_normal(2 * ROWS), jnp.float32)
    return x, jnp.array([2, 0], jnp.int32), scale


def test_a_kernel_of_copies_products_and_loops():
    x, repeats, scale = operands()
    got = np.asarray(grams(x, repeats, scale), np.float32)
    assert not mg.races_found()
    block, factor = np.asarray(x[:ROWS], np.float32), np.asarray(scale[:ROWS])
    product = np.tril(factor[:, None] * (block @ block.T) * factor)
    product = np.asarray(jnp.asarray(product, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(got[:ROWS], 2 * product @ block, atol=0.02, rtol=0.01)
    assert not got[ROWS:].any()


def test_a_missing_wait_is_a_race():
    grams(*operands(), racing=True)
    assert mg.races_found()

"""Mosaic GPU as the Hopper kernels use it: all that may change between minor versions of jax.

A kernel is a body run by every block of a grid, in each of its warpgroups (128 threads). Arrays stand
in global memory; `load` and `store` move tiles between it and shared memory (the bulk copy engine,
which counts what arrives on a barrier); `matmuls` are the tensor cores' (wgmma): float32 sums in
registers of products of bfloat16 tiles. Values in registers are rows x columns, rows in 64s.

What a warpgroup wrote to shared memory itself is seen by copies and products after `publish`.
Warpgroups of a block wait for each other by barriers alone.

On the CPU kernels are interpreted with `plgpu.InterpretGPUParams`, whose products take operands in
shared memory only and cannot start from a given sum: there these two are spelled out.
"""

import contextvars
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

LOG2E = math.log2(math.e)
WARPGROUP = "warpgroup"

_INTERPRETED = contextvars.ContextVar("interpreted", default=False)


def launch(
    body: Callable,
    *operands,
    name: str,
    grid: Mapping[str, int],
    outputs: Sequence[jax.ShapeDtypeStruct],
    scratch: Mapping[str, Any],
    warpgroups: int = 1,
    interpret: Any = False,
    approximate: bool = True,
) -> list[jax.Array]:
    """`body(*operand refs, *output refs, **scratch)` in every block; all arrays in global memory.

    Arguments:
      grid: axes and their sizes, the fastest first; `index(axis)` inside.
      scratch: of a block, from `tile`, `vector` and `barriers`, shared by its warpgroups.
      warpgroups: that run the body; `warpgroup()` inside.
      interpret: False, or `plgpu.InterpretGPUParams`.
      approximate: exp2, division and the like by the chip's fast instructions.
    """

    def traced(*refs, **scratch_refs):
        token = _INTERPRETED.set(bool(interpret))
        try:
            body(*refs, **scratch_refs)
        finally:
            _INTERPRETED.reset(token)

    traced.__name__ = name
    threads = dict(num_threads=warpgroups, thread_name=WARPGROUP)
    return plgpu.kernel(
        traced,
        out_type=tuple(outputs),
        scratch_types=dict(scratch),
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        compiler_params=plgpu.CompilerParams(approx_math=approximate),
        interpret=interpret or None,
        **threads,
    )(*operands)


def index(axis: str):
    """Of this block along a grid axis, int32."""
    return jax.lax.axis_index(axis)


def warpgroup():
    """Number of this warpgroup in its block, int32."""
    return jax.lax.axis_index(WARPGROUP)


def span(start, size: int):
    """`size` places of an axis from `start` on."""
    return pl.ds(start, size)


def when(condition) -> Callable:
    """Decorates what runs only where a scalar condition holds."""
    return pl.when(condition)


def tile(shape: tuple[int, ...], dtype=jnp.bfloat16):
    """Shared memory for matrices (the last two axes) that products read: rows in 8s, columns in
    multiples of 128 bytes (64 or 32 where there are fewer), swizzled."""
    width = jnp.dtype(dtype).itemsize
    swizzle = next(s for s in (128, 64, 32) if shape[-1] * width % s == 0)
    transforms = plgpu.TilingTransform((8, swizzle // width)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM(tuple(shape), dtype, transforms=transforms)


def vector(shape: tuple[int, ...], dtype=jnp.float32):
    """Plain shared memory: numbers that stand in a row, 16 bytes of them at least."""
    return plgpu.SMEM(tuple(shape), dtype)


def barriers(number: int, arrivals: int = 1):
    """`number` barriers, each complete after so many arrivals: a `load` is one, an `arrive` of a
    warpgroup is one."""
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=number)


def load(source, target, barrier) -> None:
    """Starts a copy from global to shared memory, an arrival on `barrier` when it is there."""
    plgpu.copy_gmem_to_smem(source, target, barrier)


def store(source, target) -> None:
    """Starts a copy from shared to global memory; `publish` before, `wait_for_stores` after."""
    plgpu.copy_smem_to_gmem(source, target)


def publish() -> None:
    """Makes what this warpgroup wrote to shared memory visible to copies and products, and what it
    read by itself (not by products) free to be overwritten by copies."""
    plgpu.commit_smem()


def wait_for_stores() -> None:
    """Waits until this warpgroup's stores have read and written all."""
    plgpu.wait_smem_to_gmem(0)


def wait_for_reads(unfinished: int = 0) -> None:
    """Waits until all but the last `unfinished` stores of this warpgroup have read their tiles."""
    plgpu.wait_smem_to_gmem(unfinished, wait_read_only=True)


def arrive(barrier) -> None:
    plgpu.barrier_arrive(barrier)


def wait(barrier) -> None:
    plgpu.barrier_wait(barrier)


def registers(number: int, more: bool) -> None:
    """Gives this warpgroup `number` registers a thread, a multiple of 8: more or fewer than it has."""
    plgpu.set_max_registers(number, action="increase" if more else "decrease")


def transposed(ref):
    """A matrix in shared memory as a product's transposed operand."""
    return ref.transpose((1, 0))


def matmuls(*terms) -> tuple[jax.Array, ...]:
    """For each term `(sum, a, b)` the float32 `sum + a @ b`, started together, then waited for.

    `sum` is (M, N) float32 in registers or None for zero, `a` (M, K) a tile or bfloat16 in
    registers, `b` (K, N) a tile; M and K are multiples of 64 and N of 8. More
    pairs in a term, `(sum, a, b, c, d)`, add to the same sum: `sum + a @ b + c @ d`.
    """
    if _INTERPRETED.get():
        return tuple(_interpreted_matmul(*term) for term in terms)
    sums = [zeros((a.shape[0], b.shape[1])) if s is None else s for s, a, b, *_ in terms]

    def start(refs):
        for ref, (_, *operands) in zip(refs, terms):
            for a, b in zip(operands[::2], operands[1::2]):
                plgpu.wgmma(ref, a, b)

    return pl.run_state(start)(tuple(plgpu.ACC.init(s) for s in sums))


def matmul(a, b) -> jax.Array:
    """float32 `a @ b`: one term of `matmuls` from zero."""
    if _INTERPRETED.get() and isinstance(a, jax.Array):
        product = jnp.dot(a, b[...], preferred_element_type=jnp.float32)
        plgpu.commit_smem()  # wgmma reads as copies do: no fence stands between the two
        return product

    def run(ref):
        plgpu.wgmma(ref, a, b)
        return ref[...]

    return pl.run_scoped(run, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def _interpreted_matmul(total, *operands):
    for a, b in zip(operands[::2], operands[1::2]):
        product = matmul(a, b)
        total = product if total is None else total + product
    return total


def zeros(shape: tuple[int, int]) -> jax.Array:
    return full(shape, 0.0)


def full(shape: tuple[int, ...], value, dtype=jnp.float32) -> jax.Array:
    """A matrix in registers as products leave it, or for one axis, a number of each of its rows."""
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else plgpu.Layout.WGMMA.reduce(1)
    return plgpu.layout_cast(jnp.full(shape, value, dtype), layout)


def of_tile(ref) -> jax.Array:
    """A tile in registers as products leave it."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA)


def of_global(ref) -> jax.Array:
    """A matrix straight from global memory, as products leave it: for what is read once."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)


def of_rows(ref) -> jax.Array:
    """A vector in shared memory as a number of each row of a matrix."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1))


def of_columns(ref) -> jax.Array:
    """A vector in shared memory as a number of each column of a matrix."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0))


def spread(ref) -> jax.Array:
    """An array in plain shared memory for what goes element by element, in runs of 4 a thread."""
    return plgpu.load(ref, layout=plgpu.Layout.WG_STRIDED(ref.shape, vec_size=4))


def line(ref) -> jax.Array:
    """A vector of 128 in shared memory, one number a thread."""
    return plgpu.load(ref, layout=plgpu.Layout.WG_STRIDED(ref.shape, vec_size=1))


def along_rows(numbers, shape: tuple[int, int]) -> jax.Array:
    """A number of each row, all along it."""
    return jax.lax.broadcast_in_dim(numbers, shape, (0,))


def along_columns(numbers, shape: tuple[int, int]) -> jax.Array:
    """A number of each column, all along it."""
    return jax.lax.broadcast_in_dim(numbers, shape, (1,))


def iota(shape: tuple[int, int], axis: int) -> jax.Array:
    """int32 row (0) or column (1) numbers of a matrix."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)


def iota_of_rows(rows: int) -> jax.Array:
    """int32 numbers of the rows of a matrix, one of each row."""
    return plgpu.broadcasted_iota(jnp.int32, (rows,), 0, layout=plgpu.Layout.WGMMA.reduce(1))


def iota_of_columns(columns: int) -> jax.Array:
    """int32 numbers of the columns of a matrix, one of each column."""
    return plgpu.broadcasted_iota(jnp.int32, (columns,), 0, layout=plgpu.Layout.WGMMA.reduce(0))


def races_found() -> bool:
    """Whether the last kernel interpreted with `detect_races=True` had a race."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    return bool(interpret_pallas_call.get_races().races_found)

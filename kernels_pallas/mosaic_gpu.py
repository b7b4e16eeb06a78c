"""The parts of Mosaic GPU that the Hopper kernels use, which may change between minor versions of jax.

A kernel is a body that every block of a grid runs, in each of its warpgroups (128 threads). Arrays are
in global memory. `load` and `store` copy tiles between global and shared memory (by the bulk copy
engine, which signals a barrier); `matmuls` runs on the tensor cores (wgmma): products of bfloat16 tiles,
summed in float32 registers. Matrices in registers have a multiple of 64 rows.

Copies and products see what a warpgroup itself wrote to shared memory only after `publish`.
Warpgroups of a block synchronise only by barriers.

On a CPU, kernels are interpreted with `plgpu.InterpretGPUParams`. Its products accept only operands in
shared memory and cannot start from a given sum; both are emulated here.
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
    """Runs `body(*operand refs, *output refs, **scratch)` in every block; arrays are in global memory.

    Arguments:
      grid: axes and their sizes, the fastest first; `index(axis)` inside.
      scratch: shared memory and barriers of a block, from `tile`, `vector` and `barriers`.
      warpgroups: number of warpgroups of a block; `warpgroup()` inside.
      interpret: False, or `plgpu.InterpretGPUParams`.
      approximate: use the chip's fast instructions for exp2, division and similar operations.
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
    """Index of this block along a grid axis, int32."""
    return jax.lax.axis_index(axis)


def warpgroup():
    """Number of this warpgroup in its block, int32."""
    return jax.lax.axis_index(WARPGROUP)


def span(start, size: int):
    """A slice of `size` elements from `start`."""
    return pl.ds(start, size)


def when(condition) -> Callable:
    """Decorates a function that runs only if a scalar condition holds."""
    return pl.when(condition)


def tile(shape: tuple[int, ...], dtype=jnp.bfloat16):
    """Shared memory for operands of products, matrices in the last two axes: swizzled, with a multiple
    of 8 rows, and columns in multiples of 128 bytes (or 64 or 32)."""
    width = jnp.dtype(dtype).itemsize
    swizzle = next(s for s in (128, 64, 32) if shape[-1] * width % s == 0)
    transforms = plgpu.TilingTransform((8, swizzle // width)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM(tuple(shape), dtype, transforms=transforms)


def vector(shape: tuple[int, ...], dtype=jnp.float32):
    """Plain shared memory with at least 16 bytes in the last axis."""
    return plgpu.SMEM(tuple(shape), dtype)


def barriers(number: int, arrivals: int = 1):
    """`number` barriers, each complete after `arrivals` arrivals: each `load` and each `arrive` of a
    warpgroup is one."""
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=number)


def load(source, target, barrier) -> None:
    """Starts a copy from global to shared memory, which arrives on `barrier` when it is complete."""
    plgpu.copy_gmem_to_smem(source, target, barrier)


def store(source, target) -> None:
    """Starts a copy from shared to global memory. Call `publish` before, `wait_for_stores` after."""
    plgpu.copy_smem_to_gmem(source, target)


def publish() -> None:
    """Makes this warpgroup's writes to shared memory visible to copies and products, and allows copies
    to overwrite what it has read (except reads by products)."""
    plgpu.commit_smem()


def wait_for_stores() -> None:
    """Waits until this warpgroup's stores are complete."""
    plgpu.wait_smem_to_gmem(0)


def wait_for_reads(unfinished: int = 0) -> None:
    """Waits until all but the last `unfinished` stores of this warpgroup have read their tiles."""
    plgpu.wait_smem_to_gmem(unfinished, wait_read_only=True)


def arrive(barrier) -> None:
    plgpu.barrier_arrive(barrier)


def wait(barrier) -> None:
    plgpu.barrier_wait(barrier)


def registers(number: int, more: bool) -> None:
    """Sets the registers per thread of this warpgroup, a multiple of 8; `more` than now, or fewer."""
    plgpu.set_max_registers(number, action="increase" if more else "decrease")


def transposed(ref):
    """The transpose of a matrix in shared memory, as an operand of a product."""
    return ref.transpose((1, 0))


def matmuls(*terms) -> tuple[jax.Array, ...]:
    """`sum + a @ b` in float32 for each term `(sum, a, b)`, all started together.

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
        plgpu.commit_smem()  # as wgmma, which reads like a copy
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
    """A constant matrix in registers, in the layout of products, or with one axis a number per row."""
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else plgpu.Layout.WGMMA.reduce(1)
    return plgpu.layout_cast(jnp.full(shape, value, dtype), layout)


def of_tile(ref) -> jax.Array:
    """A tile in registers, in the layout of products."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA)


def of_global(ref) -> jax.Array:
    """A matrix from global memory in the layout of products, for arrays that are read once."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)


def of_rows(ref) -> jax.Array:
    """A vector in shared memory as one number per row of a matrix."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1))


def of_columns(ref) -> jax.Array:
    """A vector in shared memory as one number per column of a matrix."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0))


def spread(ref) -> jax.Array:
    """An array in plain shared memory for elementwise operations, 4 neighbours per thread."""
    return plgpu.load(ref, layout=plgpu.Layout.WG_STRIDED(ref.shape, vec_size=4))


def line(ref) -> jax.Array:
    """A vector of 128 in shared memory, one number per thread."""
    return plgpu.load(ref, layout=plgpu.Layout.WG_STRIDED(ref.shape, vec_size=1))


def along_rows(numbers, shape: tuple[int, int]) -> jax.Array:
    """Broadcasts one number per row along the row."""
    return jax.lax.broadcast_in_dim(numbers, shape, (0,))


def along_columns(numbers, shape: tuple[int, int]) -> jax.Array:
    """Broadcasts one number per column along the column."""
    return jax.lax.broadcast_in_dim(numbers, shape, (1,))


def iota(shape: tuple[int, int], axis: int) -> jax.Array:
    """int32 row (0) or column (1) numbers of a matrix."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)


def iota_of_rows(rows: int) -> jax.Array:
    """int32 row numbers of a matrix, one per row."""
    return plgpu.broadcasted_iota(jnp.int32, (rows,), 0, layout=plgpu.Layout.WGMMA.reduce(1))


def iota_of_columns(columns: int) -> jax.Array:
    """int32 column numbers of a matrix, one per column."""
    return plgpu.broadcasted_iota(jnp.int32, (columns,), 0, layout=plgpu.Layout.WGMMA.reduce(0))


def races_found() -> bool:
    """Whether the last kernel interpreted with `detect_races=True` had a race."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    return bool(interpret_pallas_call.get_races().races_found)

"""A scan over chunks of tokens as one Hopper kernel (a "walk"): the state stays on chip.

Shared by the Hopper kernels of `delta_rule`, `gated_linear` and `gated_slots`. One block of the grid
computes 64 value channels of one head of one batch row; the columns of a state are independent. Its
one warpgroup keeps S in registers, K x 64 float32, and processes the chunks in order, or in reverse,
while the next chunk's matrices are being loaded. `walk` is the scan of gated linear attention and its
gradient (the same scan in reverse). The delta rule has its own kernels (`delta_rule/hopper_kernels.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas import mosaic_gpu as mg

CHUNK = 64  # tokens: the rows of a product
COLUMNS = 64  # value channels of a block
TILE = 64  # key and value sizes are multiples of this
STAGES = 2  # chunks in shared memory: the current one and the next


class WalkPlan(NamedTuple):
    """The static sizes and dtypes of a call.

    Arguments:
      key_size, value_size: K and V of the state, multiples of TILE.
      operand: dtype of the operands of products: bfloat16, or float32 (interpreters only).
      output: dtype of the output of every token.
      rows: rows of a chunk: tokens, times the number of queries that share a state.
    """

    batch: int
    heads: int
    chunks: int
    key_size: int
    value_size: int
    operand: Any
    output: Any
    interpret: Any
    rows: int = CHUNK

    @property
    def time(self) -> int:
        return self.chunks * self.rows

    def launch(self, body, *operands, name, outputs, tiles, moving):
        """Runs `body` in a block for each head and tile of columns. `moving` names the matrices that
        are loaded chunk by chunk, `tiles` others in shared memory: each a shape and a dtype."""
        stages = {name: self._staged(*shape) for name, shape in moving.items()}
        scratch = {name: mg.tile(*shape) for name, shape in tiles.items()}
        return mg.launch(
            body,
            *operands,
            name=name,
            grid=dict(columns=self.value_size // COLUMNS, head=self.heads, batch=self.batch),
            outputs=[jax.ShapeDtypeStruct(*output) for output in outputs],
            scratch=dict(stages, **scratch, ready=mg.barriers(STAGES, arrivals=len(moving))),
            interpret=self.interpret,
        )

    def _staged(self, shape, dtype):
        kind = mg.tile if len(shape) == 2 else mg.vector
        return kind((STAGES, *shape), dtype)


class ChunkLoader:
    """Loads the matrices of the chunks into shared memory, `STAGES` chunks ahead.

    Arguments:
      sources: for every matrix a function from a chunk's number to its reference in global memory.
      tiles: for every matrix the tiles (STAGES, ...).
      order: the number of the chunk at each step.
    """

    def __init__(self, plan, sources, tiles, ready, order):
        self.plan, self.sources, self.tiles = plan, sources, tiles
        self.ready, self.order = ready, order
        for step in range(min(STAGES, plan.chunks)):
            self._start(jnp.int32(step), step)

    def _start(self, step, stage):
        chunk = self.order(step)
        for source, tile in zip(self.sources, self.tiles):
            mg.load(source(chunk), tile.at[stage], self.ready.at[stage])

    def walk(self, carry, do):
        """`carry = do(chunk, carry, *tiles)` for every chunk. `do` must publish after its last read
        of a tile into registers."""

        def one(step, carry):
            stage = jax.lax.rem(step, jnp.int32(STAGES))
            mg.wait(self.ready.at[stage])
            carry = do(self.order(step), carry, *(tile.at[stage] for tile in self.tiles))

            @pl.when(step + STAGES < self.plan.chunks)
            def _():
                self._start(step + STAGES, stage)

            return carry

        return jax.lax.fori_loop(0, self.plan.chunks, one, carry)


def chunk_rows(chunk, size=CHUNK):
    return pl.ds(chunk * size, size)


def write_tile(x, tile, target, unfinished) -> None:
    """Writes x to a tile in shared memory, for products, and from there to `target` in global memory.
    Up to `unfinished` later stores may still be reading other tiles."""
    mg.wait_for_reads(unfinished)
    tile[...] = x.astype(tile.dtype)
    mg.publish()
    if target is not None:
        mg.store(tile, target)


class WalkInputs(NamedTuple):
    """The inputs of a walk, for R = batch * heads rows of N chunks of C (`WalkPlan.rows`).

    In each chunk o = read_s S + read_d d, then S <- keep S + write^T d.

    Attributes:
      write: (R, N * C, K) in plan.operand.
      keep: (R, N * K) float32.
      d: (batch, N * C, heads, V) in plan.operand.
      read_s: as `write`; or None if only states are wanted.
      read_d: (R, N * C, C) in plan.operand; or None with `read_s`.
    """

    write: jax.Array
    keep: jax.Array
    d: jax.Array
    read_s: jax.Array | None = None
    read_d: jax.Array | None = None

    def backward(self, do) -> "WalkInputs":
        """The inputs of the gradient's walk, in reverse from the cotangent of the last S.

        `do` is the cotangent of o. The walk's `o` is the cotangent of d, its states are those of S
        after each chunk, its last state is that of s."""
        return WalkInputs(self.read_s, self.keep, do, self.write, self.read_d)


def walk(
    plan: WalkPlan, name: str, steps: WalkInputs, s, *, keep_states: bool, reverse: bool = False
):
    """Runs the kernel `name` from the state s (R, K, V) float32.

    Arguments:
      keep_states: also return the state before each step.
      reverse: from the last chunk to the first, with `read_d` transposed.

    Returns a list: o (batch, N * C, heads, V) in plan.output, if there is a `read_s`; the last S
    (R, K, V) float32; with `keep_states` the S (R, N * K, V) in plan.operand before each step.
    """
    key_size, length, operand = plan.key_size, plan.rows, plan.operand
    all_rows, reads = plan.batch * plan.heads, steps.read_s is not None
    keys, values, state = (length, key_size), (length, COLUMNS), (key_size, COLUMNS)
    # In the order of the fields of `WalkInputs`.
    moving = dict(writes=(keys, operand), keeps=((key_size,), jnp.float32), ds=(values, operand))
    if reads:
        moving |= dict(reads_s=(keys, operand), reads_d=((length, length), operand))

    def body(*refs, s_tile, ready, o_tile=None, **tiles):
        sources, (first, *refs) = refs[: len(moving)], refs[len(moving) :]
        o = refs.pop(0) if reads else None
        last, states = refs if keep_states else (*refs, None)
        head, batch = mg.index("head"), mg.index("batch")
        row = batch * plan.heads + head
        columns = pl.ds(mg.index("columns") * COLUMNS, COLUMNS)

        def chunk_step(chunk, s, write, keep, d, read_s=None, read_d=None):
            # `write_tile` publishes: no loaded tile may be read into registers after it.
            keep = mg.along_rows(mg.of_rows(keep), state)
            entering = states.at[row, chunk_rows(chunk, key_size), columns] if keep_states else None
            write_tile(s, s_tile, entering, int(reads))
            written = s * keep, mg.transposed(write), d
            if not reads:
                return mg.matmuls(written)[0]
            read_d = mg.transposed(read_d) if reverse else read_d
            o_chunk, s = mg.matmuls((None, read_s, s_tile, read_d, d), written)
            write_tile(
                o_chunk,
                o_tile,
                o.at[batch, chunk_rows(chunk, length), head, columns],
                int(keep_states),
            )
            return s

        def of_chunk(name, ref):
            def source(chunk):
                if name == "ds":
                    return ref.at[batch, chunk_rows(chunk, length), head, columns]
                return ref.at[row, chunk_rows(chunk, key_size if name == "keeps" else length)]

            return source

        moved = ChunkLoader(
            plan,
            [of_chunk(name, ref) for name, ref in zip(moving, sources)],
            [tiles[name] for name in moving],
            ready,
            (lambda step: plan.chunks - 1 - step) if reverse else (lambda step: step),
        )
        last[row, :, columns] = moved.walk(mg.of_global(first.at[row, :, columns]), chunk_step)
        mg.wait_for_stores()

    o = [((plan.batch, plan.time, plan.heads, plan.value_size), plan.output)] if reads else []
    last = [((all_rows, key_size, plan.value_size), jnp.float32)]
    states = [((all_rows, plan.chunks * key_size, plan.value_size), operand)]
    return plan.launch(
        body,
        *(x for x in steps if x is not None),
        s,
        name=name,
        outputs=o + last + states * keep_states,
        tiles=dict(s_tile=(state, operand)) | (dict(o_tile=(values, plan.output)) if reads else {}),
        moving=moving,
    )

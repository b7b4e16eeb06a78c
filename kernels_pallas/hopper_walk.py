"""A walk over chunks of tokens as a Hopper kernel: the state stays on chip.

What the Hopper kernels of `delta_rule`, `gated_linear` and `gated_slots` share. One block is a row's
(batch row's and head's) tile of 64 value channels: columns of a state know nothing of each other. Its
one warpgroup keeps S in registers, K x 64 float32, and walks the chunks in order, or from the last; the
next chunk's matrices are on their way meanwhile. `walk` is the walk that corrects nothing, which read
backwards is its own gradient's; the delta rule has bodies of its own (`delta_rule/hopper_kernels.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas import mosaic_gpu as mg

CHUNK = 64  # tokens: the rows of a product
COLUMNS = 64  # value channels of a block
TILE = 64  # what sizes of keys and values are multiples of
STAGES = 2  # chunks in shared memory: the one at work and the next


class Plan(NamedTuple):
    """What is static of a call.

    Arguments:
      key_size, value_size: K and V of the state, multiples of TILE.
      operand: dtype of what products read: bfloat16, or float32 where only an interpreter runs it.
      output: dtype of what the walk gives for every token.
      rows: of a chunk: tokens, or where several queries share a state, tokens times these.
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
        """`body` in a block for each head and tile of columns; `moving` come chunk by chunk."""
        stages = {name: self._staged(*shape) for name, shape in moving.items()}
        scratch = {name: mg.tile(shape, self.operand) for name, shape in tiles.items()}
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


class Moving:
    """Matrices of the chunks on their way into shared memory, `STAGES` of them ahead.

    Arguments:
      sources: for every name a function of a chunk's number to its reference in global memory.
      tiles: for every name the tiles (STAGES, ...).
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
        """`carry = do(chunk, carry, *tiles)` for every chunk; `do` publishes after its last reads
        of tiles into registers."""

        def one(step, carry):
            stage = jax.lax.rem(step, jnp.int32(STAGES))
            mg.wait(self.ready.at[stage])
            carry = do(self.order(step), carry, *(tile.at[stage] for tile in self.tiles))

            @pl.when(step + STAGES < self.plan.chunks)
            def _():
                self._start(step + STAGES, stage)

            return carry

        return jax.lax.fori_loop(0, self.plan.chunks, one, carry)


def rows_of(chunk, size=CHUNK):
    return pl.ds(chunk * size, size)


def put(x, tile, target, unfinished) -> None:
    """x to a tile that products may read, and on to global memory; `unfinished` younger stores may
    still be reading other tiles."""
    mg.wait_for_reads(unfinished)
    tile[...] = x.astype(tile.dtype)
    mg.publish()
    if target is not None:
        mg.store(tile, target)


class Steps(NamedTuple):
    """What a walk reads, for R = batch * heads rows of N chunks of C (`Plan.rows`).

    In each chunk o = read_s S + read_d d, and then S <- keep S + write^T d.

    Attributes:
      write: (R, N * C, K) in plan.operand.
      keep: (R, N * K) float32.
      d: (batch, N * C, heads, V) in plan.operand.
      read_s: as `write`; or None, for states alone.
      read_d: (R, N * C, C) in plan.operand; or None with `read_s`.
    """

    write: jax.Array
    keep: jax.Array
    d: jax.Array
    read_s: jax.Array | None = None
    read_d: jax.Array | None = None

    def backward(self, do) -> "Steps":
        """For the cotangent `do` of o: the walk in reverse from that of the last S. Its `o` is the
        cotangent of d, the S that its steps find those after each chunk, its last that of s."""
        return Steps(self.read_s, self.keep, do, self.write, self.read_d)


def walk(plan: Plan, name: str, steps: Steps, s, *, kept: bool, reverse: bool = False):
    """Walks from s (R, K, V) float32; `name` is the kernel's.

    reverse: from the last chunk to the first, with `read_d` transposed.

    Returns a list: where `steps` reads, o (batch, N * C, heads, V) in plan.output; the last S
    (R, K, V) float32; where `kept`, the S (R, N * K, V) in plan.operand that each step finds.
    """
    key_size, length, operand = plan.key_size, plan.rows, plan.operand
    all_rows, reads = plan.batch * plan.heads, steps.read_s is not None
    keys, values, state = (length, key_size), (length, COLUMNS), (key_size, COLUMNS)
    # In the order of `Steps`.
    moving = dict(writes=(keys, operand), keeps=((key_size,), jnp.float32), ds=(values, operand))
    if reads:
        moving |= dict(reads_s=(keys, operand), reads_d=((length, length), operand))

    def body(*refs, s_tile, ready, o_tile=None, **tiles):
        sources, (first, *refs) = refs[: len(moving)], refs[len(moving) :]
        o = refs.pop(0) if reads else None
        last, states = refs if kept else (*refs, None)
        head, batch = mg.index("head"), mg.index("batch")
        row = batch * plan.heads + head
        columns = pl.ds(mg.index("columns") * COLUMNS, COLUMNS)

        def chunk_step(chunk, s, write, keep, d, read_s=None, read_d=None):
            # `put` publishes: nothing is read from moving tiles into registers after it.
            keep = mg.along_rows(mg.of_rows(keep), state)
            entering = states.at[row, rows_of(chunk, key_size), columns] if kept else None
            put(s, s_tile, entering, int(reads))
            written = s * keep, mg.transposed(write), d
            if not reads:
                return mg.matmuls(written)[0]
            read_d = mg.transposed(read_d) if reverse else read_d
            o_chunk, s = mg.matmuls((None, read_s, s_tile, read_d, d), written)
            put(o_chunk, o_tile, o.at[batch, rows_of(chunk, length), head, columns], int(kept))
            return s

        def of_chunk(name, ref):
            def source(chunk):
                if name == "ds":
                    return ref.at[batch, rows_of(chunk, length), head, columns]
                return ref.at[row, rows_of(chunk, key_size if name == "keeps" else length)]

            return source

        moved = Moving(
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
        outputs=o + last + states * kept,
        tiles=dict(s_tile=state) | (dict(o_tile=values) if reads else {}),
        moving=moving,
    )

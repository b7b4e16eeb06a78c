"""The walk over chunks as Hopper kernels: the state stays on chip, forward and backward.

One block is a head's tile of 64 value channels, whose states know nothing of other channels. Its one
warpgroup keeps S (its cotangent) in registers, K x 64 float32, and walks the chunks in order
(backward from the last); the next chunk's matrices are on their way meanwhile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas import mosaic_gpu as mg

CHUNK = 64  # tokens: the rows of a product
COLUMNS = 64  # value channels of a block
STAGES = 2  # chunks in shared memory: the one at work and the next


class Plan(NamedTuple):
    """What is static of a call.

    Arguments:
      operand: dtype of what products read: bfloat16, or float32 where only an interpreter runs it.
      output: dtype of o and of the gradient that reads o's cotangent.
    """

    batch: int
    heads: int
    chunks: int
    key_size: int
    value_size: int
    operand: Any
    output: Any
    interpret: Any

    @property
    def time(self) -> int:
        return self.chunks * CHUNK

    def launch(self, body, *operands, outputs, tiles, moving):
        """`body` in a block for each head and tile of columns; `moving` come chunk by chunk."""
        stages = {name: self._staged(*shape) for name, shape in moving.items()}
        scratch = {name: mg.tile(shape, self.operand) for name, shape in tiles.items()}
        return mg.launch(
            body, *operands,
            name=body.__name__.strip("_"),
            grid=dict(columns=self.value_size // COLUMNS, head=self.heads, batch=self.batch),
            outputs=[jax.ShapeDtypeStruct(*output) for output in outputs],
            scratch=dict(stages, **scratch, ready=mg.barriers(STAGES, arrivals=len(moving))),
            interpret=self.interpret,
        )  # fmt: skip

    def _staged(self, shape, dtype):
        kind = mg.tile if len(shape) == 2 else mg.vector
        return kind((STAGES, *shape), dtype)


class _Moving:
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


def _rows(chunk, size=CHUNK):
    return pl.ds(chunk * size, size)


def _write(x, tile, target, unfinished) -> None:
    """x to a tile that products may read, and on to global memory; `unfinished` younger stores may
    still be reading other tiles."""
    mg.wait_for_reads(unfinished)
    tile[...] = x.astype(tile.dtype)
    mg.publish()
    if target is not None:
        mg.store(tile, target)


def forward(plan: Plan, u, w, write, keep, read_s, read_d, s, kept: bool):
    """(o (B, T, H, V), last S), and where `kept` the S (R, N * K, V) that enter and the D (R, T, V).

    For R = B * H rows: D = u + w S, o = read_s S + read_d D, S <- keep S + write^T D, with u
    (R, T, V), keep (R, N * K) and s (R, K, V) float32, read_d (R, T, C), the others (R, T, K).
    """
    key_size, value_size = plan.key_size, plan.value_size
    rows, operand = plan.batch * plan.heads, plan.operand
    square, keys, values = (CHUNK, CHUNK), (CHUNK, key_size), (CHUNK, COLUMNS)

    def delta_rule_forward(
        u, w, write, keep, read_s, read_d, s, o, last, *refs,
        us, ws, writes, keeps, reads_s, reads_d, s_tile, d_tile, o_tile, ready,
    ):  # fmt: skip
        head, batch = mg.index("head"), mg.index("batch")
        row = batch * plan.heads + head
        columns = pl.ds(mg.index("columns") * COLUMNS, COLUMNS)
        states, corrections = refs if kept else (None, None)

        def chunk_step(chunk, s, u, w, write, keep, read_s, read_d):
            entering = states.at[row, _rows(chunk, key_size), columns] if kept else None
            _write(s, s_tile, entering, 2)
            s = s * mg.along_rows(mg.of_rows(keep), s.shape)
            (d,) = mg.matmuls((mg.of_tile(u), w, s_tile))
            _write(d, d_tile, corrections.at[row, _rows(chunk), columns] if kept else None, 2)
            o_chunk, s = mg.matmuls(
                (None, read_s, s_tile, read_d, d_tile), (s, mg.transposed(write), d_tile)
            )
            _write(o_chunk, o_tile, o.at[batch, _rows(chunk), head, columns], 2 if kept else 0)
            return s

        sources = [
            lambda chunk: u.at[row, _rows(chunk), columns],
            lambda chunk: w.at[row, _rows(chunk)],
            lambda chunk: write.at[row, _rows(chunk)],
            lambda chunk: keep.at[row, _rows(chunk, key_size)],
            lambda chunk: read_s.at[row, _rows(chunk)],
            lambda chunk: read_d.at[row, _rows(chunk)],
        ]
        tiles = us, ws, writes, keeps, reads_s, reads_d
        moving = _Moving(plan, sources, tiles, ready, lambda step: step)
        last[row, :, columns] = moving.walk(mg.of_global(s.at[row, :, columns]), chunk_step)
        mg.wait_for_stores()

    outputs = [
        ((plan.batch, plan.time, plan.heads, value_size), plan.output),
        ((rows, key_size, value_size), jnp.float32),
    ]
    if kept:
        outputs += [
            ((rows, plan.chunks * key_size, value_size), operand),
            ((rows, plan.time, value_size), operand),
        ]
    return plan.launch(
        delta_rule_forward, u, w, write, keep, read_s, read_d, s,
        outputs=outputs,
        tiles=dict(s_tile=(key_size, COLUMNS), d_tile=values, o_tile=values),
        moving=dict(
            us=(values, jnp.float32), ws=(keys, operand), writes=(keys, operand),
            keeps=((key_size,), jnp.float32), reads_s=(keys, operand), reads_d=(square, operand),
        ),
    )  # fmt: skip


def backward(plan: Plan, w, write, keep, read_s, read_d, do, ds):
    """(dD (R, T, V), dS (R, N * K, V) after each chunk, first dS (R, K, V) float32).

    The cotangents of D and S in `forward`: dD = read_d^T do + write dS, and before the chunk
    dS <- keep dS + read_s^T do + w^T dD. do is (B, T, H, V) in plan.operand, ds (R, K, V).
    """
    key_size, value_size = plan.key_size, plan.value_size
    rows, operand = plan.batch * plan.heads, plan.operand
    square, keys, values = (CHUNK, CHUNK), (CHUNK, key_size), (CHUNK, COLUMNS)

    def delta_rule_backward(
        w, write, keep, read_s, read_d, do, ds, dd, after, first,
        ws, writes, keeps, reads_s, reads_d, dos, ds_tile, dd_tile, ready,
    ):  # fmt: skip
        head, batch = mg.index("head"), mg.index("batch")
        row = batch * plan.heads + head
        columns = pl.ds(mg.index("columns") * COLUMNS, COLUMNS)

        def chunk_step(chunk, ds, w, write, keep, read_s, read_d, do):
            _write(ds, ds_tile, after.at[row, _rows(chunk, key_size), columns], 1)
            ds = ds * mg.along_rows(mg.of_rows(keep), ds.shape)
            dd_chunk, ds = mg.matmuls(
                (None, mg.transposed(read_d), do, write, ds_tile), (ds, mg.transposed(read_s), do)
            )
            _write(dd_chunk, dd_tile, dd.at[row, _rows(chunk), columns], 1)
            (ds,) = mg.matmuls((ds, mg.transposed(w), dd_tile))
            return ds

        sources = [
            lambda chunk: w.at[row, _rows(chunk)],
            lambda chunk: write.at[row, _rows(chunk)],
            lambda chunk: keep.at[row, _rows(chunk, key_size)],
            lambda chunk: read_s.at[row, _rows(chunk)],
            lambda chunk: read_d.at[row, _rows(chunk)],
            lambda chunk: do.at[batch, _rows(chunk), head, columns],
        ]
        tiles = ws, writes, keeps, reads_s, reads_d, dos
        moving = _Moving(plan, sources, tiles, ready, lambda step: plan.chunks - 1 - step)
        first[row, :, columns] = moving.walk(mg.of_global(ds.at[row, :, columns]), chunk_step)
        mg.wait_for_stores()

    return plan.launch(
        delta_rule_backward, w, write, keep, read_s, read_d, do, ds,
        outputs=[
            ((rows, plan.time, value_size), operand),
            ((rows, plan.chunks * key_size, value_size), operand),
            ((rows, key_size, value_size), jnp.float32),
        ],
        tiles=dict(ds_tile=(key_size, COLUMNS), dd_tile=values),
        moving=dict(
            ws=(keys, operand), writes=(keys, operand), keeps=((key_size,), jnp.float32),
            reads_s=(keys, operand), reads_d=(square, operand), dos=(values, operand),
        ),
    )  # fmt: skip

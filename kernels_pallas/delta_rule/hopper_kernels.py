"""The delta rule's scans over chunks as Hopper kernels, with the parts of `hopper_walk`.

Each chunk first corrects its values by what its entering state returns for its keys, then writes.
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas import mosaic_gpu as mg
from kernels_pallas.hopper_walk import CHUNK, COLUMNS, ChunkLoader, WalkPlan, chunk_rows, write_tile


def forward(plan: WalkPlan, u, w, write, keep, read_s, read_d, s, kept: bool):
    """(o (B, T, H, V), last S), and if `kept` the entering S (R, N * K, V) and the D (R, T, V).

    With R = B * H rows: D = u + w S, o = read_s S + read_d D, S <- keep S + write^T D, with u
    (R, T, V), keep (R, N * K) and s (R, K, V) float32, read_d (R, T, C), the others (R, T, K).
    """
    key_size, value_size = plan.key_size, plan.value_size
    rows, operand = plan.batch * plan.heads, plan.operand
    square, keys, values = (CHUNK, CHUNK), (CHUNK, key_size), (CHUNK, COLUMNS)

    def delta_rule_forward(
        u,
        w,
        write,
        keep,
        read_s,
        read_d,
        s,
        o,
        last,
        *refs,
        us,
        ws,
        writes,
        keeps,
        reads_s,
        reads_d,
        s_tile,
        d_tile,
        o_tile,
        ready,
    ):
        head, batch = mg.index("head"), mg.index("batch")
        row = batch * plan.heads + head
        columns = pl.ds(mg.index("columns") * COLUMNS, COLUMNS)
        states, corrections = refs if kept else (None, None)

        def chunk_step(chunk, s, u, w, write, keep, read_s, read_d):
            entering = states.at[row, chunk_rows(chunk, key_size), columns] if kept else None
            write_tile(s, s_tile, entering, 2)
            s = s * mg.along_rows(mg.of_rows(keep), s.shape)
            (d,) = mg.matmuls((mg.of_tile(u), w, s_tile))
            write_tile(
                d, d_tile, corrections.at[row, chunk_rows(chunk), columns] if kept else None, 2
            )
            o_chunk, s = mg.matmuls(
                (None, read_s, s_tile, read_d, d_tile), (s, mg.transposed(write), d_tile)
            )
            write_tile(
                o_chunk, o_tile, o.at[batch, chunk_rows(chunk), head, columns], 2 if kept else 0
            )
            return s

        sources = [
            lambda chunk: u.at[row, chunk_rows(chunk), columns],
            lambda chunk: w.at[row, chunk_rows(chunk)],
            lambda chunk: write.at[row, chunk_rows(chunk)],
            lambda chunk: keep.at[row, chunk_rows(chunk, key_size)],
            lambda chunk: read_s.at[row, chunk_rows(chunk)],
            lambda chunk: read_d.at[row, chunk_rows(chunk)],
        ]
        tiles = us, ws, writes, keeps, reads_s, reads_d
        moving = ChunkLoader(plan, sources, tiles, ready, lambda step: step)
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
        delta_rule_forward,
        u,
        w,
        write,
        keep,
        read_s,
        read_d,
        s,
        name="delta_rule_forward",
        outputs=outputs,
        tiles=dict(
            s_tile=((key_size, COLUMNS), operand),
            d_tile=(values, operand),
            o_tile=(values, plan.output),
        ),
        moving=dict(
            us=(values, jnp.float32),
            ws=(keys, operand),
            writes=(keys, operand),
            keeps=((key_size,), jnp.float32),
            reads_s=(keys, operand),
            reads_d=(square, operand),
        ),
    )


def backward(plan: WalkPlan, w, write, keep, read_s, read_d, do, ds):
    """(dD (R, T, V), dS (R, N * K, V) after each chunk, first dS (R, K, V) float32).

    The cotangents of D and S in `forward`: dD = read_d^T do + write dS, and before the chunk
    dS <- keep dS + read_s^T do + w^T dD. do is (B, T, H, V) in plan.operand, ds (R, K, V).
    """
    key_size, value_size = plan.key_size, plan.value_size
    rows, operand = plan.batch * plan.heads, plan.operand
    square, keys, values = (CHUNK, CHUNK), (CHUNK, key_size), (CHUNK, COLUMNS)

    def delta_rule_backward(
        w,
        write,
        keep,
        read_s,
        read_d,
        do,
        ds,
        dd,
        after,
        first,
        ws,
        writes,
        keeps,
        reads_s,
        reads_d,
        dos,
        ds_tile,
        dd_tile,
        ready,
    ):
        head, batch = mg.index("head"), mg.index("batch")
        row = batch * plan.heads + head
        columns = pl.ds(mg.index("columns") * COLUMNS, COLUMNS)

        def chunk_step(chunk, ds, w, write, keep, read_s, read_d, do):
            write_tile(ds, ds_tile, after.at[row, chunk_rows(chunk, key_size), columns], 1)
            ds = ds * mg.along_rows(mg.of_rows(keep), ds.shape)
            dd_chunk, ds = mg.matmuls(
                (None, mg.transposed(read_d), do, write, ds_tile), (ds, mg.transposed(read_s), do)
            )
            write_tile(dd_chunk, dd_tile, dd.at[row, chunk_rows(chunk), columns], 1)
            (ds,) = mg.matmuls((ds, mg.transposed(w), dd_tile))
            return ds

        sources = [
            lambda chunk: w.at[row, chunk_rows(chunk)],
            lambda chunk: write.at[row, chunk_rows(chunk)],
            lambda chunk: keep.at[row, chunk_rows(chunk, key_size)],
            lambda chunk: read_s.at[row, chunk_rows(chunk)],
            lambda chunk: read_d.at[row, chunk_rows(chunk)],
            lambda chunk: do.at[batch, chunk_rows(chunk), head, columns],
        ]
        tiles = ws, writes, keeps, reads_s, reads_d, dos
        moving = ChunkLoader(plan, sources, tiles, ready, lambda step: plan.chunks - 1 - step)
        first[row, :, columns] = moving.walk(mg.of_global(ds.at[row, :, columns]), chunk_step)
        mg.wait_for_stores()

    return plan.launch(
        delta_rule_backward,
        w,
        write,
        keep,
        read_s,
        read_d,
        do,
        ds,
        name="delta_rule_backward",
        outputs=[
            ((rows, plan.time, value_size), operand),
            ((rows, plan.chunks * key_size, value_size), operand),
            ((rows, key_size, value_size), jnp.float32),
        ],
        tiles=dict(ds_tile=((key_size, COLUMNS), operand), dd_tile=(values, operand)),
        moving=dict(
            ws=(keys, operand),
            writes=(keys, operand),
            keeps=((key_size,), jnp.float32),
            reads_s=(keys, operand),
            reads_d=(square, operand),
            dos=(values, operand),
        ),
    )

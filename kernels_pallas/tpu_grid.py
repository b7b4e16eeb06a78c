"""The grid of chunked TPU kernels: (batch, blocks of heads, chunks), and the blocks of each step.

Heads stay in the layout of the projections, side by side in the channels of a token, so nothing is
transposed in memory; a step processes a few of them. Chunks are visited in order, in backward passes in
reverse, with the states of the step's heads in vector memory.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.tpu_decays import levels

LANES = 128
SUBLANES = 16  # of a tile of bfloat16
CHUNK = 128  # tokens: a side of the matrix unit


def chunk_length(time: int) -> int:
    """Tokens per chunk: the smallest power of two >= T, from `SUBLANES` to `CHUNK`."""
    return min(CHUNK, max(SUBLANES, 1 << max(0, time - 1).bit_length()))


class Heads(NamedTuple):
    """The heads of a grid step: `groups` key heads with `ratio` value heads each.

    A step has all value heads of some key heads, or some value heads of one key head.
    """

    all_groups: int
    all_ratio: int
    groups: int
    ratio: int

    @classmethod
    def of(cls, groups: int, ratio: int, key_size: int, value_size: int, most: int) -> "Heads":
        """The largest number of value heads, at most `most`, that fill whole registers of 128 channels
        (or are all heads). If there is none, the smallest number above `most`."""

        def whole(count, all_count, size):
            return count == all_count or count * size % LANES == 0

        fitting = []
        for g, r in ((g, r) for g in _divisors(groups) for r in _divisors(ratio)):
            one_kind = g == 1 or r == ratio
            keys = whole(g, groups, key_size)
            values = all(whole(g * r, groups * ratio, size) for size in (key_size, value_size))
            if one_kind and keys and values:
                fitting.append(cls(groups, ratio, g, r))
        small = [h for h in fitting if h.heads <= most]
        return max(small, key=lambda h: h.heads) if small else min(fitting, key=lambda h: h.heads)

    @property
    def heads(self) -> int:
        """Value heads of a step."""
        return self.groups * self.ratio

    @property
    def blocks(self) -> int:
        """Grid steps that cover all heads."""
        return self.all_groups * self.all_ratio // self.heads

    @property
    def sharing(self) -> int:
        """Grid steps that read the same key heads."""
        return self.all_ratio // self.ratio

    def split(self, x, axis: int):
        """Axis `axis` of all value heads as two: blocks and the heads of each."""
        return x.reshape(*x.shape[:axis], self.blocks, self.heads, *x.shape[axis + 1 :])

    def by_group(self):
        """(number of the key head, numbers of its value heads) for each key head of a step."""
        return [(g, range(g * self.ratio, (g + 1) * self.ratio)) for g in range(self.groups)]

    def sum_shared(self, dx_BTK, size: int, dtype):
        """Gradients (B, T, blocks * groups * size) of key heads, summed over the steps that share them."""
        batch, time, _ = dx_BTK.shape
        dx = dx_BTK.reshape(batch, time, self.all_groups, self.sharing, size)
        return jnp.sum(dx, axis=3).astype(dtype) if self.sharing > 1 else dx[:, :, :, 0]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


class GridPlan(NamedTuple):
    """The static sizes and options of a call."""

    heads: Heads
    length: int  # of a chunk
    key_size: int
    value_size: int
    per_channel: bool  # one gate per channel of the key, or one per head
    scale: float
    precision: jax.lax.Precision
    interpret: Any
    erase: bool = False  # the delta rule with an erase key
    unit_eps: float | None = None  # the delta rule: queries and keys are given length 1

    def rows(self, x_BTH):
        """(B, T, H) -> (B, N, chunks, R, C): one row per value head, in N blocks of R heads."""
        batch, time, _ = x_BTH.shape
        shape = batch, time // self.length, self.length, self.heads.blocks, self.heads.heads
        return jnp.transpose(x_BTH.reshape(shape), (0, 3, 1, 4, 2))


def pad_time(x_BT, length: int):
    """Pads with zeros at the end to whole chunks; the added tokens change nothing."""
    added = -x_BT.shape[1] % length
    return jnp.pad(x_BT, ((0, 0), (0, added)) + ((0, 0),) * (x_BT.ndim - 2)) if added else x_BT


def flat(x_BTHK):
    """(B, T, H * K)"""
    return x_BTHK.reshape(*x_BTHK.shape[:2], -1)


def tokens_of(marks_BNX1C, time: int):
    """(B, T): True where `tpu_nonfinite.replace` has marked a token in any head's step."""
    marked_BXC = jnp.any(marks_BNX1C != 0, axis=(1, 3))
    return marked_BXC.reshape(marked_BXC.shape[0], -1)[:, :time]


def with_marks(dx_BTK, marks_BNX1C, dflag_BT):
    """A gradient with NaN where the cotangent of the output was not finite, by the marks, or that of the
    flag is NaN. Of heads side by side: with an axis of heads this would be a copy of its own."""
    time = dflag_BT.shape[1]
    bad_BT = tokens_of(marks_BNX1C, time) | jnp.isnan(dflag_BT)
    bad_BT = jnp.pad(bad_BT, ((0, 0), (0, dx_BTK.shape[1] - time)))
    return jnp.where(bad_BT[..., None], jnp.nan, dx_BTK)


def head(ref_or_array, number: int, size: int):
    """Columns of one head of (C, heads * size)."""
    return ref_or_array[:, number * size : (number + 1) * size]


class Specs:
    """Block specs of one call, forward or `reverse` in time; H heads in N blocks of R."""

    def __init__(self, plan, time: int, reverse: bool):
        self.plan, self.chunks = plan, time // plan.length
        heads, length, key_size = plan.heads, plan.length, plan.key_size

        def at(c):
            return self.chunks - 1 - c if reverse else c

        width = heads.groups * key_size
        self.at = at
        self.keys = pl.BlockSpec((1, length, width), lambda b, h, c: (b, at(c), h // heads.sharing))
        self.own_keys = pl.BlockSpec((1, length, width), lambda b, h, c: (b, at(c), h))
        self.values = pl.BlockSpec(
            (1, length, heads.heads * plan.value_size), lambda b, h, c: (b, at(c), h)
        )
        self.rows = self.per_chunk(length)
        # Of all heads of a step: which tokens are not finite.
        self.marks = pl.BlockSpec((1, 1, 1, 1, length), lambda b, h, c: (b, h, at(c), 0, 0))
        self.gates = (
            pl.BlockSpec((1, length, heads.heads * key_size), lambda b, h, c: (b, at(c), h))
            if plan.per_channel
            else self.rows
        )
        state = heads.heads, key_size, plan.value_size
        self.state = pl.BlockSpec((1, 1, *state), lambda b, h, c: (b, h, 0, 0, 0))
        self.states = self.per_chunk(key_size, plan.value_size)

    def per_chunk(self, *size):
        """The spec of (B, N, chunks, R, *size): one array per head and chunk."""
        heads, at = self.plan.heads.heads, self.at
        block = (1, 1, 1, heads, *size)
        return pl.BlockSpec(block, lambda b, h, c: (b, h, at(c), 0) + (0,) * len(size))

    def saved(self, batch: int, *size):
        """(spec, shape, dtype) of an array saved for the backward pass, rounded as products round it."""
        plan = self.plan
        default = plan.precision == jax.lax.Precision.DEFAULT
        shape = batch, plan.heads.blocks, self.chunks, plan.heads.heads, *size
        return self.per_chunk(*size), shape, jnp.bfloat16 if default else jnp.float32

    def saved_states(self, batch: int):
        return self.saved(batch, self.plan.key_size, self.plan.value_size)

    def marked(self, batch: int):
        """(spec, shape, dtype) of what `tpu_nonfinite.replace` returns in each step."""
        shape = batch, self.plan.heads.blocks, self.chunks, 1, self.plan.length
        return self.marks, shape, jnp.float32

    def state_scratch(self):
        plan = self.plan
        return pltpu.VMEM((plan.heads.heads, plan.key_size, plan.value_size), jnp.float32)

    def factor_scratch(self):
        """Scratch memory for the factors of `ChannelDecays`, for one gate per channel."""
        plan = self.plan
        shape = plan.heads.heads, levels(plan.length), plan.length, plan.key_size
        return [pltpu.VMEM(shape, jnp.float32)] if plan.per_channel else []

    def call(self, kernel, name, in_specs, outs, scratch):
        """The `pallas_call`; `outs` are (spec, shape, dtype)."""
        plan = self.plan

        def run(*arrays):
            return pl.pallas_call(
                kernel,
                grid=(arrays[0].shape[0], plan.heads.blocks, self.chunks),
                in_specs=in_specs,
                out_specs=[spec for spec, _, _ in outs],
                out_shape=[jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in outs],
                scratch_shapes=scratch,
                compiler_params=pltpu.CompilerParams(
                    dimension_semantics=("parallel", "parallel", "arbitrary")
                ),
                interpret=plan.interpret,
                name=name + ("_channel" if plan.per_channel else "_head"),
            )(*arrays)

        return run

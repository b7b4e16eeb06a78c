"""The bodies of the TPU kernels for gated slots: what one grid step computes for its chunk.

Arrays of a chunk are (C, M), (C, K) or (C, C) with queries on rows; slots are (K, M).
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import mxu


def forward(
    q_ref,
    k_ref,
    v_ref,
    log_gate_ref,
    write_ref,
    resets_ref,
    k_first_ref,
    v_first_ref,
    out_ref,
    lse_ref,
    k_last_ref,
    v_last_ref,
    k_enter_ref,
    v_enter_ref,
    k_slots_ref,
    v_slots_ref,
    *,
    precision,
):
    """Outputs and log-sum-exps of a chunk's queries, and the slots before and after it."""
    number, last = pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(number == 0)
    def _():
        k_slots_ref[...] = k_first_ref[0, 0]
        v_slots_ref[...] = v_first_ref[0, 0]

    k, v, k_slots, v_slots = k_ref[0, 0], v_ref[0, 0], k_slots_ref[...], v_slots_ref[...]
    k_enter_ref[0, 0, 0], v_enter_ref[0, 0, 0] = k_slots, v_slots
    chunk = _Chunk(log_gate_ref[0, 0], write_ref[0, 0], resets_ref[0, 0], precision)
    for head in range(q_ref.shape[2]):
        q = q_ref[0, 0, head]
        earlier, own = chunk.read(chunk.dot(q, k, mxu.NT), q, k_slots)
        logits = earlier + own * chunk.write
        m = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - m)
        l = jnp.sum(weights, axis=-1, keepdims=True)
        p = weights / l
        out = chunk.dot(chunk.pairs(p), v) + chunk.dot(p * chunk.prefix, v_slots, mxu.NT)
        out_ref[0, 0, head] = out
        lse_ref[0, 0, :, head : head + 1] = m + jnp.log(l)

    k_slots = chunk.total * k_slots + chunk.dot(k, chunk.written, mxu.TN)
    v_slots = chunk.total * v_slots + chunk.dot(v, chunk.written, mxu.TN)
    k_slots_ref[...], v_slots_ref[...] = k_slots, v_slots

    @pl.when(number == last)
    def _():
        k_last_ref[0, 0], v_last_ref[0, 0] = k_slots, v_slots


def backward(
    q_ref,
    k_ref,
    v_ref,
    log_gate_ref,
    write_ref,
    resets_ref,
    dout_ref,
    lse_ref,
    delta_ref,
    k_enter_ref,
    v_enter_ref,
    dk_last_ref,
    dv_last_ref,
    dq_ref,
    dk_ref,
    dv_ref,
    dlog_gate_ref,
    dwrite_ref,
    dk_first_ref,
    dv_first_ref,
    dk_slots_ref,
    dv_slots_ref,
    *,
    precision,
):
    """Gradients of a chunk's inputs, and of the slots before it from those of the slots after it."""
    number, last = pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(number == 0)
    def _():
        dk_slots_ref[...] = dk_last_ref[0, 0]
        dv_slots_ref[...] = dv_last_ref[0, 0]

    k, v, k_slots, v_slots = k_ref[0, 0], v_ref[0, 0], k_enter_ref[0, 0, 0], v_enter_ref[0, 0, 0]
    chunk = _Chunk(log_gate_ref[0, 0], write_ref[0, 0], resets_ref[0, 0], precision)
    write = chunk.write
    dk, dv = jnp.zeros_like(k), jnp.zeros_like(v)
    dk_read, dv_read = jnp.zeros_like(k_slots), jnp.zeros_like(v_slots)
    dwrite_own, dwrite, ends = (jnp.zeros_like(write) for _ in range(3))
    for head in range(q_ref.shape[2]):
        q, dout = q_ref[0, 0, head], dout_ref[0, 0, head]
        column = slice(head, head + 1)
        # The softmax: dlogits = p (dp - sum p dp + dlse), dp_m = dout . (value slot m).
        earlier, own = chunk.read(chunk.dot(q, k, mxu.NT), q, k_slots)
        dearlier, down = chunk.read(chunk.dot(dout, v, mxu.NT), dout, v_slots)
        p = jnp.exp(earlier + own * write - lse_ref[0, 0, :, column])
        dlogits = p * (dearlier + down * write - delta_ref[0, 0, :, column])
        # Logits depend on keys as outputs depend on values.
        q_pairs, dout_pairs = chunk.pairs(dlogits), chunk.pairs(p)
        dq = chunk.dot(q_pairs, k) + chunk.dot(dlogits * chunk.prefix, k_slots, mxu.NT)
        dq_ref[0, 0, head] = dq
        dk += chunk.dot(q_pairs, q, mxu.TN)
        dv += chunk.dot(dout_pairs, dout, mxu.TN)
        dk_read += chunk.dot(q, dlogits * chunk.prefix, mxu.TN)
        dv_read += chunk.dot(dout, p * chunk.prefix, mxu.TN)
        dwrite += chunk.writes(chunk.dot(k, q, mxu.NT), dlogits)
        dwrite += chunk.writes(chunk.dot(v, dout, mxu.NT), p)
        dwrite_own += own * dlogits + down * p
        ends += dlogits * earlier + p * dearlier

    dk_slots, dv_slots = dk_slots_ref[...], dv_slots_ref[...]  # of the slots after the chunk
    dk_ref[0, 0] = dk + chunk.dot(chunk.written, dk_slots, mxu.NT)
    dv_ref[0, 0] = dv + chunk.dot(chunk.written, dv_slots, mxu.NT)
    dwrite_end = chunk.suffix * (chunk.dot(k, dk_slots) + chunk.dot(v, dv_slots))
    # d log_gate_i sums everything that decays through token i: the pairs j < i <= t, as the difference
    # of those that end and those that begin from i on; writes that reach the chunk's end; and slots
    # that pass through the whole chunk. A token's read of its own write does not decay and is left out.
    across = jnp.sum(dk_slots * k_slots, axis=0, keepdims=True)
    across += jnp.sum(dv_slots * v_slots, axis=0, keepdims=True)
    dlog_gate = _sum_from(ends - write * dwrite) + _sum_before(write * dwrite_end)
    dlog_gate += chunk.total * across
    dlog_gate_ref[0, 0] = jnp.where(resets_ref[0, 0] > 0, 0, dlog_gate)
    dwrite_ref[0, 0] = dwrite + dwrite_own + dwrite_end
    dk_slots_ref[...] = dk_slots = chunk.total * dk_slots + dk_read
    dv_slots_ref[...] = dv_slots = chunk.total * dv_slots + dv_read

    @pl.when(number == last)
    def _():
        dk_first_ref[0, 0], dv_first_ref[0, 0] = dk_slots, dv_slots


class _Chunk:
    """Products of gates within a chunk, and sums over tokens and slots with them.

    `prefix` of a token is the product of the chunk's gates up to its own, `suffix` that of the gates
    after it; `written` is its write, decayed to the chunk's end. A level is (half, prefix, suffix,
    written), the products within halves of `half` tokens.
    """

    def __init__(self, log_gate, write, resets, precision):
        self.precision, self.write = precision, write
        gate, length = jnp.where(resets > 0, 0, jnp.exp(log_gate)), write.shape[0]
        self.levels, half = [], 1
        while half < length:
            prefix, suffix = _prefix(gate, half), _suffix(gate, half)
            self.levels.append((half, prefix, suffix, suffix * write))
            half *= 2
        self.prefix, self.suffix = _prefix(gate, length), _suffix(gate, length)
        self.written, self.total = self.suffix * write, self.prefix[-1:]
        self.row = jax.lax.broadcasted_iota(jnp.int32, (length, length), 0)
        self.column = jax.lax.broadcasted_iota(jnp.int32, (length, length), 1)
        self.same = self.row == self.column

    def dot(self, x, y, dims=mxu.NN):
        return mxu.dot(x, y, dims, self.precision)

    def read(self, dots, x, slots):
        """x_t . slot_t of slots filled with y, without t's own write, given all x_t . y_j (C, C);
        and x_t . y_t."""
        sums = self.prefix * self.dot(x, slots)
        for half, prefix, _, written in self.levels:
            is_pair = _is_pair(self.row, self.column, half)
            sums += prefix * self.dot(jnp.where(is_pair, dots, 0), written)
        return sums, jnp.sum(jnp.where(self.same, dots, 0), axis=-1, keepdims=True)

    def pairs(self, weights):
        """sum_m w_tm (decay from j to t)_m write_jm of all pairs j <= t: (C, C)."""
        pairs = jnp.where(self.same, self.dot(weights, self.write, mxu.NT), 0)
        for half, prefix, _, written in self.levels:
            is_pair = _is_pair(self.row, self.column, half)
            pairs = jnp.where(is_pair, self.dot(weights * prefix, written, mxu.NT), pairs)
        return pairs

    def writes(self, dots, weights):
        """sum_{t > j} (x_t . y_j) (decay from j to t) w_t, given all y_j . x_t (C, C)."""
        sums = jnp.zeros_like(weights)
        for half, prefix, suffix, _ in self.levels:
            is_pair = _is_pair(self.column, self.row, half)
            sums += suffix * self.dot(jnp.where(is_pair, dots, 0), weights * prefix)
        return sums


def _is_pair(t, j, half: int):
    """Whether query t and key j are a pair of the level of halves of `half` tokens, a power of two:
    `half` is the highest bit in which t and j differ, and t has it."""
    return (((t ^ j) // half) == 1) & (t > j)


def _prefix(gate, length: int):
    """Products of the gates up to each token's own, within runs of `length` tokens."""
    row, step = jax.lax.broadcasted_iota(jnp.int32, gate.shape, 0) % length, 1
    while step < length:
        gate *= jnp.where(row >= step, pltpu.roll(gate, step, 0), 1)
        step *= 2
    return gate


def _suffix(gate, length: int):
    """Products of the gates after each token, within runs of `length` tokens."""
    total = gate.shape[0]
    row, step = jax.lax.broadcasted_iota(jnp.int32, gate.shape, 0) % length, 1
    gate = jnp.where(row < length - 1, pltpu.roll(gate, total - 1, 0), 1)
    while step < length:
        gate *= jnp.where(row < length - step, pltpu.roll(gate, total - step, 0), 1)
        step *= 2
    return gate


def _sum_from(x):
    """For each token the sum from it to the chunk's end."""
    total, step = x.shape[0], 1
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    while step < total:
        x += jnp.where(row < total - step, pltpu.roll(x, total - step, 0), 0)
        step *= 2
    return x


def _sum_before(x):
    """For each token the sum of those before it."""
    total, step = x.shape[0], 1
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    x = jnp.where(row >= 1, pltpu.roll(x, 1, 0), 0)
    while step < total:
        x += jnp.where(row >= step, pltpu.roll(x, step, 0), 0)
        step *= 2
    return x

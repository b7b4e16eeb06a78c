"""Attention on TPUs to more keys than VMEM holds: spans of keys, one distance after another.

Keys are cut into spans that fit VMEM, queries likewise. Every span of queries first sees its own span of
keys, as a call of `tpu` does; then, at each distance d, the span of keys d before it, of which every query
sees an interval that reaches to the end: a rectangle. All spans of queries of a distance are rows of one
kernel call, and a loop runs over distances, so the program has two kernels a pass, however many spans. Parts
are merged by their log-sum-exp, in float32. The backward pass needs the log-sum-exp over all keys alone:
it saves no part, and runs the backward kernel once for each distance.

A window ends the loop at the last distance that it reaches. Rows that see nothing of a span cost its copy to
VMEM. Forget gates are not supported.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, mxu
from kernels_pallas.attention import intervals, tpu, tpu_nonfinite
from kernels_pallas.attention.intervals import NO_KEYS


class Spans(NamedTuple):
    """How keys and queries are cut; the last span of either ends with the last token.

    Attributes:
      length: keys of a span, a multiple of the block.
      keys: spans of keys.
      queries: spans of queries; a single one may be shorter than `length`.
      tokens: queries of a span.
      distances: the largest distance between a span of queries and one of keys that it sees.
      near, far: plans of the two kernels.
    """

    length: int
    keys: int
    queries: int
    tokens: int
    distances: int
    near: tpu.Static
    far: tpu.Static


def vmem_mib(time, slots, window, key_size, value_size, dtype, gated_heads: int = 0) -> int:
    """As `tpu.vmem_mib`, of a span where one call does not fit."""
    sizes = key_size, value_size, dtype
    whole = tpu.vmem_mib(time, slots, window, *sizes, gated_heads)
    if whole <= tpu.VMEM_MIB or gated_heads:
        return whole
    return tpu.vmem_mib(span_length(time + slots, *sizes), 0, None, *sizes)


def span_length(keys: int, key_size: int, value_size: int, dtype) -> int:
    """The length of as few spans of equal length as fit VMEM, in whole blocks; one if it holds all keys."""
    block, spans = tpu.BLOCK_SIZES.block, 1
    while True:
        length = -(-keys // (spans * block)) * block
        fits = tpu.vmem_mib(length, 0, None, key_size, value_size, dtype) <= tpu.VMEM_MIB
        if fits or length == block:
            return length
        spans += 1


def cut(x_BT, spans: int, length: int):
    """(B, T, ...) -> (B, N, L, ...), padded before the first token."""
    padding = spans * length - x_BT.shape[1]
    x_BT = jnp.pad(x_BT, ((0, 0), (padding, 0)) + ((0, 0),) * (x_BT.ndim - 2))
    return x_BT.reshape(x_BT.shape[0], spans, length, *x_BT.shape[2:])


def joined(x_BNL, tokens: int):
    """The inverse of `cut`: the last tokens, (B, T, ...)."""
    x_BT = x_BNL.reshape(x_BNL.shape[0], -1, *x_BNL.shape[3:])
    return x_BT[:, x_BT.shape[1] - tokens :]


def attention(
    q_BTHK,
    k_BSGK,
    v_BSGV,
    segment_ids_BS,
    sinks_H,
    log_forget_BSH=None,
    *,
    window,
    scale,
    soft_cap,
    precision,
):
    """(out_BTHV, lse_BTH), as `tpu.attention`; by spans where VMEM does not hold the keys."""
    time, keys = q_BTHK.shape[1], k_BSGK.shape[1]
    sizes = k_BSGK.shape[3], v_BSGV.shape[3], q_BTHK.dtype
    whole = tpu.vmem_mib(time, keys - time, window, *sizes)
    if whole <= tpu.VMEM_MIB or log_forget_BSH is not None:
        arrays = q_BTHK, k_BSGK, v_BSGV, segment_ids_BS, sinks_H, log_forget_BSH
        options = dict(window=window, scale=scale, soft_cap=soft_cap, precision=precision)
        return tpu.attention(*arrays, **options)
    start_BT = intervals.starts(segment_ids_BS, keys - time, window)
    spans = _spans(time, keys, window, sizes, (scale, soft_cap, mxu.resolve_precision(precision)))
    return _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, spans)


def _spans(time: int, keys: int, window: int | None, sizes: tuple, options: tuple) -> Spans:
    length = span_length(keys, *sizes)
    count, queries = -(-keys // length), -(-time // length)
    tokens = time if queries == 1 else length
    near = tpu.make_plan(tokens, length - tokens, None, *options)
    far = tpu.make_plan(tokens, length, None, *options)._replace(rectangle=True)
    reached = count - 1
    if (
        window is not None
    ):  # the first query of a span sees `length - tokens` older keys of its own span
        reached = min(reached, max(-(-(window - 1 - (length - tokens)) // length), 0))
    interpret = dispatch.target().interpret
    statics = (tpu.Static(plan, interpret) for plan in (near, far))
    return Spans(length, count, queries, tokens, reached, *statics)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, spans):
    return _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, spans)[0]


def _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, spans):
    rows = _Rows(spans, start_BT)
    q, k, v = rows.queries(q_BTHK), rows.keys(k_BSGK), rows.keys(v_BSGV)

    def step(merged, distance):
        keys = rows.keys_at(k, distance), rows.keys_at(v, distance)
        start = rows.start_at(distance)
        *part, unclean = tpu.outputs(q, *keys, None, None, start, spans.far, jnp.float32)
        return intervals.merge(merged, tuple(part)), unclean

    keys = rows.keys_at(k, 0), rows.keys_at(v, 0)
    own = tpu.outputs(q, *keys, sinks_H, None, rows.own_start(), spans.near, jnp.float32)
    merged, unclean = jax.lax.scan(step, own[:2], jnp.arange(1, spans.distances + 1))
    out_BTHV, lse_BTH = map(rows.from_queries, merged)
    named = tpu.named(out_BTHV.astype(v_BSGV.dtype), lse_BTH, (own[2], unclean))
    return named[:2], (q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, *named)


def _backward(spans, residuals, cotangents):
    q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, out_BTHV, lse_BTH, unclean = residuals
    dout_BTHV, dlse_BTH = cotangents
    rows = _Rows(spans, start_BT)
    delta_BTH = intervals.row_sums(dout_BTHV, dlse_BTH, out_BTHV)
    is_spoilt = ~jnp.isfinite(rows.queries(delta_BTH)).all((1, 2))[:, None]
    lse_BTH, delta_BTH, dsinks_H = tpu_nonfinite.softmax_gradient(
        delta_BTH, lse_BTH, sinks_H, start_BT
    )
    q, k, v = rows.queries(q_BTHK), rows.keys(k_BSGK), rows.keys(v_BSGV)
    softmax = tuple(map(rows.queries, (dout_BTHV, lse_BTH, delta_BTH)))

    def gradients(distance, start, unclean, static):
        keys = rows.keys_at(k, distance), rows.keys_at(v, distance)
        given = q, *keys, None, start, unclean | is_spoilt, softmax, static
        return tpu.gradients(*given, jnp.float32)[:3]

    def added(sums, found, distance):
        dq, *dkeys = found
        add = functools.partial(rows.add_at, distance=distance)
        return (sums[0] + dq, *map(add, sums[1:], dkeys))

    def step(sums, given):
        distance, unclean = given
        found = gradients(distance, rows.start_at(distance), unclean, spans.far)
        return added(sums, found, distance), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    sums = added(zeros, gradients(0, rows.own_start(), unclean[0], spans.near), 0)
    distances = jnp.arange(1, spans.distances + 1)
    (dq, dk, dv), _ = jax.lax.scan(step, sums, (distances, unclean[1]))
    dq_BTHK = rows.from_queries(dq).astype(q_BTHK.dtype)
    dk_BSGK = joined(dk, k_BSGK.shape[1]).astype(k_BSGK.dtype)
    dv_BSGV = joined(dv, v_BSGV.shape[1]).astype(v_BSGV.dtype)
    return dq_BTHK, dk_BSGK, dv_BSGV, dsinks_H, None


_attention.defvjp(_forward, _backward)


class _Rows:
    """Spans of queries as rows of a batch, (B * N, L, ...), and the spans of keys that they see."""

    def __init__(self, spans: Spans, start_BT):
        self.spans = spans
        self.batch, self.time = start_BT.shape
        self.own_N = jnp.arange(spans.queries) + spans.keys - spans.queries  # span of keys of a row
        # Numbered from the first, padded, key on.
        before = spans.keys * spans.length - self.time
        start_BT = jnp.where(start_BT == NO_KEYS, NO_KEYS, start_BT + before)
        padding = spans.queries * spans.tokens - self.time
        start_BT = jnp.pad(start_BT, ((0, 0), (padding, 0)), constant_values=NO_KEYS)
        self.start_BNL = start_BT.reshape(self.batch, spans.queries, spans.tokens)

    def queries(self, x_BT):
        x_BNL = cut(x_BT, self.spans.queries, self.spans.tokens)
        return x_BNL.reshape(-1, *x_BNL.shape[2:])

    def from_queries(self, x_NL):
        return joined(x_NL.reshape(self.batch, self.spans.queries, *x_NL.shape[1:]), self.time)

    def keys(self, x_BS):
        """(B, N, L, ...)."""
        return cut(x_BS, self.spans.keys, self.spans.length)

    def keys_at(self, x_BNL, distance):
        """The span that lies `distance` before that of each row. Where there is none it is another, of
        which the row sees nothing (`start_at`)."""
        x_BNL = jnp.take(x_BNL, self._spans_at(distance), axis=1)
        return x_BNL.reshape(-1, *x_BNL.shape[2:])

    def add_at(self, sums_BNL, x_NL, distance):
        """Adds gradients of the keys of `keys_at`, which are 0 where a row sees nothing."""
        x_BNL = x_NL.reshape(self.batch, self.spans.queries, *x_NL.shape[1:])
        return sums_BNL.at[:, self._spans_at(distance)].add(x_BNL, unique_indices=True)

    def own_start(self):
        """The first key of its own span that each query sees, relative to the row's first query."""
        end_1N1 = self._ends(0)
        first_1N1 = end_1N1 - self.spans.length
        start = jnp.maximum(self.start_BNL, first_1N1) - (end_1N1 - self.spans.tokens)
        return self._rows(jnp.where(self.start_BNL == NO_KEYS, NO_KEYS, start))

    def start_at(self, distance):
        """The first key of a span before its own that each query sees, relative to the span's end."""
        end_1N1 = self._ends(distance)
        start = jnp.maximum(self.start_BNL - end_1N1, -self.spans.length)
        return self._rows(jnp.where((self.start_BNL < end_1N1) & (end_1N1 > 0), start, NO_KEYS))

    def _spans_at(self, distance):
        return (self.own_N - distance) % self.spans.keys

    def _ends(self, distance):
        """The number of keys up to the end of the span `distance` before that of each row."""
        return ((self.own_N - distance + 1) * self.spans.length)[None, :, None]

    def _rows(self, x_BNL):
        return x_BNL.reshape(-1, self.spans.tokens)

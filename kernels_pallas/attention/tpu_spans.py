"""Attention on TPUs to more keys than VMEM holds: spans of keys, one distance after another.

Keys are cut into spans that fit VMEM, queries likewise. Every span of queries first sees its own span of
keys, as a call of `tpu` does; then, at each distance d, the span of keys d before it, of which every query
sees an interval that reaches to the end: a rectangle. All spans of queries of a distance are rows of one
kernel call, and a loop runs over distances, so the program has two kernels a pass, however many spans. Parts
are merged by their log-sum-exp, in float32. The backward pass needs the log-sum-exp over all keys alone:
it saves no part, and runs the backward kernel once for each distance.

A window ends the loop at the last distance that it reaches. Rows that see nothing of a span cost its copy to
VMEM.

Forget gates: a query that sees any key of an older span sees its last one, which is of the query's document. So
the sum of log-gates between the two splits there: what is after that key is one number for a query. The sums
are computed once, over all keys. Backward, sums of d logits of queries and of keys are added over distances, in
float32, as dq, dk and dv are.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, mxu
from kernels_pallas.attention import forget, intervals, tpu, tpu_nonfinite
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
    sizes = key_size, value_size, dtype, gated_heads
    whole = tpu.vmem_mib(time, slots, window, *sizes)
    if whole <= tpu.VMEM_MIB:
        return whole
    return tpu.vmem_mib(span_length(time + slots, *sizes), 0, None, *sizes)


def span_length(keys: int, key_size: int, value_size: int, dtype, gated_heads: int = 0) -> int:
    """The length of as few spans of equal length as fit VMEM, in whole blocks; one if it holds all keys.
    `gated_heads`: as in `tpu.vmem_mib`."""
    block, spans = tpu.BLOCK_SIZES.block, 1
    while True:
        length = -(-keys // (spans * block)) * block
        mib = tpu.vmem_mib(length, 0, None, key_size, value_size, dtype, gated_heads)
        if mib <= tpu.VMEM_MIB or length == block:
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
    time, keys, has_gates = q_BTHK.shape[1], k_BSGK.shape[1], log_forget_BSH is not None
    gated_heads = q_BTHK.shape[2] // k_BSGK.shape[2] if has_gates else 0
    sizes = k_BSGK.shape[3], v_BSGV.shape[3], q_BTHK.dtype, gated_heads
    if tpu.vmem_mib(time, keys - time, window, *sizes) <= tpu.VMEM_MIB:
        arrays = q_BTHK, k_BSGK, v_BSGV, segment_ids_BS, sinks_H, log_forget_BSH
        options = dict(window=window, scale=scale, soft_cap=soft_cap, precision=precision)
        return tpu.attention(*arrays, **options)
    start_BT = intervals.starts(segment_ids_BS, keys - time, window)
    options = scale, soft_cap, mxu.resolve_precision(precision), has_gates
    spans = _spans(time, keys, window, sizes, options)
    gates = tpu.Gates.of(
        log_forget_BSH, segment_ids_BS, keys
    )  # first tokens of all keys' documents
    return _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, spans)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, spans):
    return _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, spans)[0]


def _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, spans):
    rows = _Rows(spans, start_BT, gates)
    q, k, v = rows.queries(q_BTHK), rows.keys(k_BSGK), rows.keys(v_BSGV)

    def step(merged, distance):
        keys = rows.keys_at(k, distance), rows.keys_at(v, distance)
        start = rows.start_at(distance)
        given = q, *keys, None, rows.gates_at(distance, start), start, spans.far
        *part, unclean = tpu.outputs(*given, jnp.float32)
        return intervals.merge(merged, tuple(part)), unclean

    keys = rows.keys_at(k, 0), rows.keys_at(v, 0)
    given = q, *keys, sinks_H, rows.own_gates(), rows.own_start(), spans.near
    own = tpu.outputs(*given, jnp.float32)
    merged, unclean = jax.lax.scan(step, own[:2], jnp.arange(1, spans.distances + 1))
    out_BTHV, lse_BTH = map(rows.from_queries, merged)
    named = tpu.named(out_BTHV.astype(v_BSGV.dtype), lse_BTH, (own[2], unclean))
    return named[:2], (q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, *named)


def _backward(spans, residuals, cotangents):
    q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, out_BTHV, lse_BTH, unclean = residuals
    dout_BTHV, dlse_BTH = cotangents
    rows = _Rows(spans, start_BT, gates)
    delta_BTH = intervals.row_sums(dout_BTHV, dlse_BTH, out_BTHV)
    is_spoilt = ~jnp.isfinite(rows.queries(delta_BTH)).all((1, 2))[:, None]
    lse_BTH, delta_BTH, dsinks_H = tpu_nonfinite.softmax_gradient(
        delta_BTH, lse_BTH, sinks_H, start_BT
    )
    q, k, v = rows.queries(q_BTHK), rows.keys(k_BSGK), rows.keys(v_BSGV)
    softmax = tuple(map(rows.queries, (dout_BTHV, lse_BTH, delta_BTH)))

    def gradients(distance, gates, start, unclean, static):
        """Those of queries, and those of keys; with forget gates each has a second array."""
        keys = rows.keys_at(k, distance), rows.keys_at(v, distance)
        given = q, *keys, gates, start, unclean | is_spoilt, softmax, static
        dq, dk, dv, dgates = tpu.gradients(*given, jnp.float32)
        dqueries, dkeys = ((x,) for x in dgates) if dgates else ((), ())
        return (dq, *dqueries), (dk, dv, *dkeys)

    def added(sums, found, distance):
        add = functools.partial(rows.add_at, distance=distance)
        dqueries = tuple(x + y for x, y in zip(sums[0], found[0]))
        return dqueries, tuple(map(add, sums[1], found[1]))

    def step(sums, given):
        distance, unclean = given
        start = rows.start_at(distance)
        found = gradients(distance, rows.gates_at(distance, start), start, unclean, spans.far)
        return added(sums, found, distance), None

    found = gradients(0, rows.own_gates(), rows.own_start(), unclean[0], spans.near)
    of_keys = (k, v) if gates is None else (k, v, rows.key_sums.high)
    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in of_keys)
    sums = added((map(jnp.zeros_like, found[0]), zeros), found, 0)
    distances = jnp.arange(1, spans.distances + 1)
    (dqueries, dkeys), _ = jax.lax.scan(step, sums, (distances, unclean[1]))
    dq_BTHK, *dqueries = map(rows.from_queries, dqueries)
    dk_BSGK, dv_BSGV, *dkeys = (joined(x, k_BSGK.shape[1]) for x in dkeys)
    return (
        dq_BTHK.astype(q_BTHK.dtype),
        dk_BSGK.astype(k_BSGK.dtype),
        dv_BSGV.astype(v_BSGV.dtype),
        dsinks_H,
        gates and gates.cotangent(*dqueries, *dkeys),
        None,
    )


_attention.defvjp(_forward, _backward)


class _Rows:
    """Spans of queries as rows of a batch, (B * N, L, ...), and the spans of keys that they see."""

    def __init__(self, spans: Spans, start_BT, gates: tpu.Gates | None):
        self.spans = spans
        self.batch, self.time = start_BT.shape
        self.gates = gates
        if gates is not None:
            self.key_sums = forget.Cumulative(*map(self.keys, gates.sums))
            own = gates.sums.last(self.time)
            self.query_sums = forget.Cumulative(*map(self.queries, own))
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

    def own_gates(self) -> tpu.Gates | None:
        """What the near kernel reads of forget gates; a document's first token is numbered from the row's
        first query. Where queries are padded there are keys, whose documents count."""
        if self.gates is None:
            return None
        first_BS, tokens = self.gates.first_BT, self.spans.tokens
        first_BNL = jnp.take(self.keys(first_BS), self.own_N, axis=1)[:, :, -tokens:]
        padding = self.spans.keys * self.spans.length - first_BS.shape[1]
        first_BNL += padding - (self._ends(0) - tokens)
        return tpu.Gates(self._sums_at(0), self._rows(first_BNL))

    def gates_at(self, distance, start_NL) -> tpu.OlderGates | None:
        """What the far kernel reads of forget gates; `start_NL` as of `start_at`."""
        if self.gates is None:
            return None
        sums = self._sums_at(distance)
        since_NLH = sum(x - keys[:, -1:] for x, keys in zip(self.query_sums, sums))
        return tpu.OlderGates(sums, jnp.where((start_NL == NO_KEYS)[..., None], 0, since_NLH))

    def _sums_at(self, distance) -> forget.Cumulative:
        return forget.Cumulative(*(self.keys_at(x, distance) for x in self.key_sums))

    def _spans_at(self, distance):
        return (self.own_N - distance) % self.spans.keys

    def _ends(self, distance):
        """The number of keys up to the end of the span `distance` before that of each row."""
        return ((self.own_N - distance + 1) * self.spans.length)[None, :, None]

    def _rows(self, x_BNL):
        return x_BNL.reshape(-1, self.spans.tokens)

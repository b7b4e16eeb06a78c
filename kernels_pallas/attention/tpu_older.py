"""Attention on TPUs of queries to older keys alone, of which each sees an interval up to the last: the
rectangle of a ring (`kernels_pallas.context.ring`). Keys that do not fit VMEM are cut into spans, and a loop
runs over them, forward and backward; as in `tpu_spans`, the backward pass needs the log-sum-exp over all keys
that a query sees anywhere."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, mxu
from kernels_pallas.attention import intervals, tpu, tpu_nonfinite
from kernels_pallas.attention.intervals import NEGATIVE, NO_KEYS
from kernels_pallas.attention.tpu_spans import cut, joined, span_length


class Rectangle(NamedTuple):
    """How the keys are cut, and the plan of the kernels; made once for both passes.

    Attributes:
      length: keys of a span. count: spans.
    """

    length: int
    count: int
    static: tpu.Static

    @classmethod
    def of(cls, q_BTHK, k_BSGK, v_BSGV, scale, soft_cap, precision) -> "Rectangle":
        keys = k_BSGK.shape[1]
        length = span_length(keys, k_BSGK.shape[3], v_BSGV.shape[3], q_BTHK.dtype)
        options = scale, soft_cap, mxu.resolve_precision(precision)
        plan = tpu.make_plan(q_BTHK.shape[1], length, None, *options)._replace(rectangle=True)
        return cls(length, -(-keys // length), tpu.Static(plan, dispatch.target().interpret))

    def outputs(self, q_BTHK, k_BSGK, v_BSGV, start_BT) -> tuple:
        """(out_BTHV, lse_BTH), float32.

        Arguments:
          start_BT: the first key that a query sees, relative to the end of the keys, so negative; or
            NO_KEYS.
        """

        def step(merged, span):
            k, v, keys_after = span
            start = self._start(start_BT, keys_after)
            part = tpu.outputs(q_BTHK, k, v, None, None, start, self.static, jnp.float32)
            return intervals.merge(merged, part[:2]), None

        shape = *q_BTHK.shape[:3], v_BSGV.shape[3]
        nothing = jnp.zeros(shape, jnp.float32), jnp.full(shape[:3], NEGATIVE, jnp.float32)
        return jax.lax.scan(step, nothing, self._spans(k_BSGK, v_BSGV))[0]

    def gradients(self, q_BTHK, k_BSGK, v_BSGV, start_BT, rows: tuple) -> tuple:
        """(dq_BTHK, dk_BSGK, dv_BSGV), float32.

        Arguments:
          rows: (dout_BTHV, lse_BTH, delta_BTH) of the softmax over all keys.
        """
        dout_BTHV, lse_BTH, delta_BTH = rows
        is_spoilt_B1 = ~jnp.isfinite(delta_BTH).all((1, 2))[:, None]
        unclean_BG = jnp.broadcast_to(is_spoilt_B1, (len(k_BSGK), k_BSGK.shape[2]))
        lse_BTH, delta_BTH, _ = tpu_nonfinite.softmax_gradient(delta_BTH, lse_BTH, None, start_BT)
        softmax = dout_BTHV, lse_BTH, delta_BTH

        def step(dq_BTHK, span):
            k, v, keys_after = span
            start = self._start(start_BT, keys_after)
            given = q_BTHK, k, v, None, start, unclean_BG, softmax, self.static
            dq, dk, dv, _ = tpu.gradients(*given, jnp.float32)
            return dq_BTHK + dq, (dk, dv)

        zeros = jnp.zeros(q_BTHK.shape, jnp.float32)
        dq_BTHK, dkeys = jax.lax.scan(step, zeros, self._spans(k_BSGK, v_BSGV))
        return dq_BTHK, *(joined(jnp.moveaxis(x, 0, 1), k_BSGK.shape[1]) for x in dkeys)

    def _spans(self, *arrays):
        """(N, B, L, ...) of each array, and of each span the number of keys after it."""
        keys_after_N = self.length * jnp.arange(self.count - 1, -1, -1)
        spans = (jnp.moveaxis(cut(x, self.count, self.length), 1, 0) for x in arrays)
        return *spans, keys_after_N

    def _start(self, start_BT, keys_after):
        """Relative to the end of a span, and not before its first key."""
        start_BT = start_BT + jnp.where(start_BT == NO_KEYS, 0, keys_after)
        return jnp.where(start_BT < 0, jnp.maximum(start_BT, -self.length), NO_KEYS)

"""The laws that every sequence op and every mixer must obey, as reusable checks.

A `Subject` wraps an op (or a whole mixer) as one function of named inputs, parameters, segment ids and
a state. Each `check_*` draws arrays from `rng`, checks one law and raises AssertionError with the
error that it found:

    check_forms          1  chunked = reference, outputs, final state and every gradient
    check_packed         2  a document's outputs and gradients do not change when packed
    check_split          3  several calls with a carried state = one call
    check_causal         4  later tokens change nothing earlier, padding changes nothing
    check_finite         5  finite values and gradients on extreme inputs
    check_sharded        6  sharded over the batch = single device
    check_deterministic  7  two runs, the same bits
    check_contained      8  NaN and infinity reach no other document
    check_vmap              a mapped axis = a loop

`LAWS` has the same checks as functions of (subject, rng) that also draw lengths, boundaries and cuts,
for property-based tests over many subjects.

A subject must mask outputs that are not 0 at padding (a log-sum-exp).
"""

from kernels_pallas.testing.checks import (
    check_bfloat16,
    check_causal,
    check_deterministic,
    check_finite,
    check_forms,
    check_packed,
    check_sharded,
    check_split,
    check_vmap,
    compiled,
)
from kernels_pallas.testing.contained import check_contained
from kernels_pallas.testing.laws import LAWS
from kernels_pallas.testing.subject import (
    Subject,
    assert_close,
    collectives,
    draw_cotangents,
    draw_segment_ids,
    error,
    floats,
    normal,
    runner,
)

__all__ = [
    "LAWS",
    "Subject",
    "assert_close",
    "check_bfloat16",
    "check_causal",
    "check_contained",
    "check_deterministic",
    "check_finite",
    "check_forms",
    "check_packed",
    "check_sharded",
    "check_split",
    "check_vmap",
    "collectives",
    "compiled",
    "draw_cotangents",
    "draw_segment_ids",
    "error",
    "floats",
    "normal",
    "runner",
]

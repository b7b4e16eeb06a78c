"""The laws as functions of (subject, rng), for property-based tests over many subjects."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from kernels_pallas.testing.checks import (
    check_causal,
    check_deterministic,
    check_finite,
    check_forms,
    check_packed,
    check_split,
)
from kernels_pallas.testing.contained import check_contained
from kernels_pallas.testing.subject import Subject, draw_segment_ids

#: Lengths at, around and across chunk boundaries.
LENGTHS = (1, 2, 15, 17, 63, 64, 65, 127, 130)


def draw_length(rng, longest: int = LENGTHS[-1]) -> int:
    """One of `LENGTHS`, at most `longest`."""
    return int(rng.choice([n for n in LENGTHS if n <= longest]))


def draw_documents(rng, longest: int) -> tuple[list[int], list[int]]:
    """Lengths of five documents, of one token or of one other number, and the padded gaps after them."""
    lengths = [1, *rng.choice([1, int(rng.integers(2, longest + 1))], size=2).tolist()]
    lengths += [max(2, *lengths)] * 2
    rng.shuffle(lengths)
    return lengths, (rng.integers(0, 4, size=len(lengths)) * rng.integers(0, 2)).tolist()


def _law_forms(subject, rng) -> None:
    time = draw_length(rng)
    ids = draw_segment_ids(rng, 2, time)
    with_state = subject.state is not None and bool(rng.integers(0, 4))
    check_forms(subject, rng, 2, time, segment_ids=ids, with_state=with_state)


def _law_forms_float32(subject, rng) -> None:
    time = draw_length(rng)
    ids = draw_segment_ids(rng, 2, time, padding=0.1)
    with_state = subject.state is not None
    check_forms(subject, rng, 2, time, jnp.float32, 1e-5, ids, with_state)


def _law_packed(subject, rng) -> None:
    check_packed(subject, rng, *draw_documents(rng, longest=int(rng.choice([5, 40]))))


def _law_split(subject, rng) -> None:
    time = draw_length(rng, 65) + 2
    ids = draw_segment_ids(rng, 2, time)
    changes = np.flatnonzero(np.any(np.diff(np.asarray(ids), axis=1), axis=0)) + 1
    cuts = {int(rng.integers(1, time))} | ({int(rng.choice(changes))} if len(changes) else set())
    with_state = subject.state is not None and bool(rng.integers(0, 2))
    check_split(subject, rng, 2, time, sorted(cuts), segment_ids=ids, with_state=with_state)


def _law_decode(subject, rng) -> None:
    prefill = int(rng.integers(1, 8))
    time = prefill + 2
    ids = draw_segment_ids(rng, 2, time, documents=3)
    check_split(subject, rng, 2, time, range(prefill, time), segment_ids=ids, with_state=False)


def _law_causal(subject, rng) -> None:
    time = draw_length(rng) + 1
    check_causal(subject, rng, 2, time, int(rng.integers(1, time)), draw_segment_ids(rng, 2, time))


def _law_finite(subject, rng) -> None:
    time = int(rng.choice([1, 63, 127]))
    check_finite(subject, rng, 2, time, segment_ids=draw_segment_ids(rng, 2, time))


def _law_deterministic(subject, rng) -> None:
    check_deterministic(subject, rng, 2, 70, segment_ids=draw_segment_ids(rng, 2, 70))


def _law_contained(subject, rng) -> None:
    time = draw_length(rng) + 1
    cut = int(rng.integers(1, time))
    ids = draw_segment_ids(rng, 2, time)
    with_state = subject.state is not None and bool(rng.integers(0, 4))
    check_contained(subject, rng, 2, time, cut, ids, with_state=with_state)


#: Laws 1 to 5, 7 and 8 as functions of (subject, rng); float64 must be enabled (`jax.enable_x64`).
#: Law 6 needs several devices: `check_sharded`. Law 1 in bfloat16 is `check_bfloat16`.
LAWS: dict[str, Callable[[Subject, np.random.Generator], None]] = {
    "chunked = reference": _law_forms,
    "chunked = reference, float32": _law_forms_float32,
    "packed = separate": _law_packed,
    "split = whole": _law_split,
    "decode = whole": _law_decode,
    "causal": _law_causal,
    "finite": _law_finite,
    "deterministic": _law_deterministic,
    "contained": _law_contained,
}

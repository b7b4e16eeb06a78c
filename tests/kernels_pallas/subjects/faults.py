"""A planted fault: one attribute is replaced, and a law must then fail."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kernels_pallas import nonfinite, segments, testing
from kernels_pallas.forms import Call


class Fault(NamedTuple):
    """`where` (a module, class or dict) gets `name` replaced; `law` must then raise."""

    where: Any
    name: str
    replacement: Any
    law: Callable[[], None]


def rng():
    return np.random.default_rng(0)


def forms(subject, time=40):
    ids = testing.draw_segment_ids(rng(), 2, time)
    return lambda: testing.check_forms(subject, rng(), 2, time, segment_ids=ids)


def packed(subject):
    return lambda: testing.check_packed(subject, rng(), [3, 8, 1], gaps=[0, 2, 0])


def split(subject):
    return lambda: testing.check_split(subject, rng(), 2, 12, [5])


def causal(subject):
    ids = jnp.asarray([[1] * 9 + [0] * 3] * 2)
    return lambda: testing.check_causal(subject, rng(), 2, 12, 4, ids)


def finite(subject):
    return lambda: testing.check_finite(subject, rng(), 1, 127)


def without_state(call: Call) -> Call:
    return call._replace(state_B=jnp.zeros_like(call.state_B))


def no_boundaries(segment_ids_BT, previous_ids_B=None):
    return jnp.zeros(segment_ids_BT.shape, bool).at[:, 0].set(previous_ids_B is None)


def not_replaced(inputs, ids_BT, is_log=False):
    return list(inputs), jnp.zeros(ids_BT.shape, bool)


def not_contained(subject) -> Fault:
    """NaN and infinity reach the products, for any op that uses `nonfinite`."""
    ids = jnp.asarray([[1] * 4 + [2] * 4 + [3] * 4] * 2)
    law = lambda: testing.check_contained(subject, rng(), 2, 12, 6, ids)  # noqa: E731
    return Fault(nonfinite, "_replace", not_replaced, law)


def boundary_dropped(subject) -> Fault:
    """Documents are not separated, for any op that uses `segments.document_starts`."""
    return Fault(segments, "document_starts", no_boundaries, packed(subject))

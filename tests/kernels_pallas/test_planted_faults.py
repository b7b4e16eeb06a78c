"""The laws have teeth: each planted fault makes the law named beside it fail.

That each law holds without its fault is checked among the slow tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_subjects import attention_subject, conv_subject, recurrence_subject

from kernels_pallas import attention as attention_op
from kernels_pallas import linear_recurrence as recurrence_op
from kernels_pallas import segments, testing
from kernels_pallas.attention import chunked as attention_chunked
from kernels_pallas.linear_recurrence import chunked as recurrence_chunked


def forms(subject):
    ids = testing.draw_segment_ids(rng(), 2, 40)
    return lambda: testing.check_forms(subject, rng(), 2, 40, segment_ids=ids)


def packed(subject):
    return lambda: testing.check_packed(subject, rng(), [3, 8, 1], gaps=[0, 2, 0])


def split(subject):
    return lambda: testing.check_split(subject, rng(), 2, 12, [5])


def causal(subject):
    ids = jnp.asarray([[1] * 9 + [0] * 3] * 2)
    return lambda: testing.check_causal(subject, rng(), 2, 12, 4, ids)


def finite(subject):
    return lambda: testing.check_finite(subject, rng(), 1, 127)


def rng():
    return np.random.default_rng(0)


def no_boundaries(segment_ids_BT, previous_ids_B=None):
    return jnp.zeros(segment_ids_BT.shape, bool).at[:, 0].set(previous_ids_B is None)


def window_one_longer(*args, window, original=attention_chunked.attention, **kwargs):
    return original(*args, window=window + 1, **kwargs)


def lse_gradient_ignored(static, residuals, cotangents, original=attention_chunked._backward):
    return original(static, residuals, (cotangents[0], jnp.zeros_like(cotangents[1])))


def sees_the_future(self, start_NBC, original=attention_chunked._Part.mask):
    self.key -= 1
    return original(self, start_NBC)


def decays_after_input(a_BTD, b_BTD, h_BD, original=recurrence_chunked.linear_recurrence):
    """h_t = a_t (h_{t-1} + b_t)."""
    return original(a_BTD, a_BTD * b_BTD, h_BD)


def divides_by_decay_products(a_BTD, b_BTD, h_BD):
    product_BTD = jnp.cumprod(a_BTD, axis=1)
    return product_BTD * (h_BD[:, None] + jnp.cumsum(b_BTD / product_BTD, axis=1))


def state_dropped(a_BTD, b_BTD, h_BD, original=recurrence_chunked.linear_recurrence):
    return original(a_BTD, b_BTD, jnp.zeros_like(h_BD))


def slots_dropped(state, slots):
    return attention_op.AttentionState(*(jnp.zeros_like(array) for array in state))


windowed, full = attention_subject(window=4, sinks=True), attention_subject()
recurrent = recurrence_subject()
FAULTS = {
    "boundary dropped, attention": (segments, "document_starts", no_boundaries, packed(full)),
    "boundary dropped, recurrence": (segments, "document_starts", no_boundaries, packed(recurrent)),
    "boundary dropped, conv": (segments, "document_starts", no_boundaries, packed(conv_subject())),
    "window off by one": (attention_op._FORMS, "chunked", window_one_longer, forms(windowed)),
    "dlse ignored": (attention_chunked, "_backward", lse_gradient_ignored, forms(windowed)),
    "one future key": (attention_chunked._Part, "mask", sees_the_future, causal(full)),
    "state dropped, attention": (attention_op, "_last_slots", slots_dropped, split(windowed)),
    "state dropped, recurrence": (recurrence_op._FORMS, "chunked", state_dropped, split(recurrent)),
    "decay order": (recurrence_op._FORMS, "chunked", decays_after_input, forms(recurrent)),
    "division by decays": (
        recurrence_op._FORMS, "chunked", divides_by_decay_products, finite(recurrent)
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(x64, monkeypatch, fault):
    where, name, replacement, law = FAULTS[fault]
    if isinstance(where, dict):
        monkeypatch.setitem(where, name, replacement)
    elif name == "_backward":
        monkeypatch.setattr(attention_chunked._attention, "bwd", replacement)
    else:
        monkeypatch.setattr(where, name, replacement)
    jax.clear_caches()
    with pytest.raises(AssertionError):
        law()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_law_holds_without_the_fault(x64, fault):
    FAULTS[fault][-1]()

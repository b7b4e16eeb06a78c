"""Every op obeys every law, with random inputs, sizes, lengths and boundaries."""

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from subjects import SUBJECTS

from kernels_pallas import delta_rule, gated_linear, linear_recurrence
from kernels_pallas.testing import LAWS, check_bfloat16, check_forms, draw_segment_ids

seeds = st.integers(0, 2**32 - 1)
by_law = pytest.mark.parametrize("law", LAWS)
by_op = pytest.mark.parametrize("op", SUBJECTS)
#: By default only these of an op without kernels; all of its laws run with the slow tests.
FEW = {"selective_scan": ("chunked = reference", "packed = separate", "contained")}


def hold(op, law, seed):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        LAWS[law](SUBJECTS[op](rng), rng)


@pytest.mark.parametrize(
    "op, law",
    [
        pytest.param(op, law, marks=[pytest.mark.slow] * (law not in FEW.get(op, LAWS)))
        for op in SUBJECTS
        for law in LAWS
    ],
)
@settings(max_examples=1, deadline=None, phases=[Phase.generate])
@given(seed=seeds)
def test_law(op, law, seed):
    hold(op, law, seed)


@pytest.mark.slow
@by_law
@by_op
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(seed=seeds)
def test_law_at_length(op, law, seed):
    hold(op, law, seed)


#: Attention rounds the weights of its product with v as XLA's own attention does; the reference does
#: not. test_attention compares it with XLA's.
@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(SUBJECTS.keys() - {"attention"}))
@settings(max_examples=1, deadline=None, phases=[Phase.generate])
@given(seed=seeds)
def test_bfloat16(op, seed):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        subject, ids_BT = SUBJECTS[op](rng), draw_segment_ids(rng, 2, 130, padding=0.1)
        check_bfloat16(subject, rng, 2, 130, ids_BT, with_state=subject.state is not None)


#: Lengths of several blocks of an op's outer loop.
SEVERAL_BLOCKS = {
    "delta_rule": 2 * delta_rule.chunked.BLOCK + 1,
    "gated_linear": 2 * gated_linear.chunked.BLOCK * gated_linear.chunked.CHUNK + 1,
    "linear_recurrence": 2 * linear_recurrence.chunked.BLOCK + 1,
}


@pytest.mark.parametrize("op", SEVERAL_BLOCKS)
def test_several_blocks(op, x64):
    rng, time = np.random.default_rng(0), SEVERAL_BLOCKS[op]
    subject, ids_BT = SUBJECTS[op](rng), draw_segment_ids(rng, 2, time)
    check_forms(subject, rng, 2, time, segment_ids=ids_BT)

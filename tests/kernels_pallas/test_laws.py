"""Every op obeys every law, on inputs, sizes, lengths and boundaries drawn afresh."""

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from subjects import SUBJECTS

from kernels_pallas.testing import LAWS

seeds = st.integers(0, 2**32 - 1)
by_law = pytest.mark.parametrize("law", LAWS)
by_op = pytest.mark.parametrize("op", SUBJECTS)


def hold(op, law, seed):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        LAWS[law](SUBJECTS[op](rng), rng)


@by_law
@by_op
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

"""The laws have teeth: each planted fault makes the law named beside it fail.

That each law holds without its fault is checked among the slow tests.
"""

import jax
import pytest
from subjects import FAULTS


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(x64, monkeypatch, name):
    fault = FAULTS[name]
    if isinstance(fault.where, dict):
        monkeypatch.setitem(fault.where, fault.name, fault.replacement)
    else:
        monkeypatch.setattr(fault.where, fault.name, fault.replacement)
    jax.clear_caches()
    with pytest.raises(AssertionError):
        fault.law()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_law_holds_without_the_fault(x64, name):
    FAULTS[name].law()

"""Each planted fault makes its law fail.

One fault of each op runs by default. The others run with the slow tests, as do the tests that each law
holds without its fault.
"""

import jax
import pytest
from subjects import FAULTS

FIRST = {name.partition(":")[0]: name for name in reversed(FAULTS)}  # of each op


@pytest.mark.parametrize(
    "name", [n if n in FIRST.values() else pytest.param(n, marks=pytest.mark.slow) for n in FAULTS]
)
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

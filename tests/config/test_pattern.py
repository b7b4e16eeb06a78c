"""A pattern gives every layer its mixer, in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.models.pattern import expand, parse
from hybridlm.settings.reader import Invalid

NAMES = ("swa", "full", "rec")


@given(
    unit=st.lists(st.sampled_from(NAMES), min_size=1, max_size=5),
    prefix=st.lists(st.sampled_from(NAMES), max_size=3),
    suffix=st.lists(st.sampled_from(NAMES), max_size=3),
    extra=st.integers(0, 30),
)
def test_layout_fills_the_depth_in_order(unit, prefix, suffix, extra):
    depth = max(1, len(prefix) + len(suffix) + extra)
    layout = parse(" ".join(unit), depth, " ".join(prefix), " ".join(suffix), NAMES)
    names = list(layout.names)
    middle = names[len(prefix) : len(names) - len(suffix)]
    assert len(names) == depth
    assert names[: len(prefix)] == prefix
    assert names[len(names) - len(suffix) :] == suffix
    assert middle == [unit[i % len(unit)] for i in range(len(middle))]
    assert layout.repeats == len(middle) // len(unit)


@pytest.mark.parametrize(
    "text, names",
    [
        ("swa full", ["swa", "full"]),
        ("swa*3 full", ["swa"] * 3 + ["full"]),
        ("full swa*2", ["full", "swa", "swa"]),
        ("  swa   full ", ["swa", "full"]),
        ("ssd+none*2 none+mlp", ["ssd+none", "ssd+none", "none+mlp"]),
    ],
)
def test_counts_are_expanded(text, names):
    assert [layer.label for layer in expand(text)] == names


@pytest.mark.parametrize("text", ["swa*", "*3", "swa full*x", "swa,full", "3*swa"])
def test_malformed_terms_are_refused(text):
    with pytest.raises(Invalid, match="write mixer names"):
        expand(text)

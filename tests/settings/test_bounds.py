"""Bounds are checked however settings are created; errors and documentation state them."""

import dataclasses
import math
import pickle
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.errors import ConfigError
from hybridlm.settings.bounds import (
    FLOAT32_TINY,
    Above,
    AtLeast,
    AtMost,
    Below,
    Between,
    IsPath,
    NotEmpty,
    PositiveFloat,
    PositiveInt,
    in_float32,
    settings,
)
from hybridlm.settings.describe import type_text
from hybridlm.settings.reader import Invalid, read_dataclass, require, within

# (annotation, a value inside, one outside, the error, the type in documentation).
BOUNDS = [
    (PositiveInt, 1, 0, "must be at least 1, not 0", "whole number, at least 1"),
    (
        PositiveInt | None,
        None,
        0,
        "must be at least 1, or None, not 0",
        "whole number, at least 1, or `None`",
    ),
    (
        Annotated[int, AtLeast(1, note="its own counts", none="for all")] | None,
        1,
        -2,
        "must be at least 1 (its own counts), or None for all, not -2",
        "whole number, at least 1, or `None`",
    ),
    (
        Annotated[int, AtLeast(1, also=-1)],
        -1,
        0,
        "must be at least 1, or -1, not 0",
        "whole number, at least 1, or -1",
    ),
    (
        Annotated[PositiveInt, AtMost(10_000)],
        10_000,
        10_001,
        "must be at most 10,000, not 10001",
        "whole number, at least 1, at most 10,000",
    ),
    (PositiveFloat, 1e-9, 0.0, "must be positive, not 0.0", "number above 0"),
    (
        PositiveFloat,
        FLOAT32_TINY,
        1e-40,
        "must be positive, not 1e-40, which is 0.0 in float32",
        "number above 0",
    ),
    (Annotated[float, Above(1)], 1.5, 1.0, "must be above 1, not 1.0", "number above 1"),
    (
        Annotated[float, Above(1)],
        1.0000001,
        1.00000001,
        "must be above 1, not 1.00000001, which is 1.0 in float32",
        "number above 1",
    ),
    (Annotated[float, Below(0)], -1.0, 0.0, "must be negative, not 0.0", "number below 0"),
    (Annotated[float, Below(2)], 1.0, 2.0, "must be below 2, not 2.0", "number below 2"),
    (Annotated[int, Between(1, 8)], 8, 9, "must lie in 1 to 8, not 9", "whole number, 1 to 8"),
    (
        Annotated[float, Between(0, 1, high_open=True)],
        0.0,
        1.0,
        "must lie in [0, 1), not 1.0",
        "number in [0, 1)",
    ),
    (
        Annotated[float, Between(0, 1, high_open=True)] | None,
        0.9999999,
        0.99999999,
        "must lie in [0, 1), or be None, not 0.99999999, which is 1.0 in float32",
        "number in [0, 1), or `None`",
    ),
    (
        Annotated[float, Between(0, 1, low_open=True)] | None,
        1.0,
        0.0,
        "must lie in (0, 1], or be None, not 0.0",
        "number in (0, 1], or `None`",
    ),
    (
        Annotated[int, Between(0, 2**20, high_open=True)],
        2**20 - 1,
        2**20,
        "must lie in [0, 2^20), not 1048576",
        "whole number in [0, 2^20)",
    ),
    (Annotated[str, NotEmpty()], "a", "", "is empty", "text, not empty"),
    (
        Annotated[dict[str, float], NotEmpty("names none")],
        {"a": 0.0},
        {},
        "names none",
        "number by name, not empty",
    ),
]


@pytest.mark.parametrize("hint, inside, outside, error, text", BOUNDS, ids=[b[3] for b in BOUNDS])
def test_each_bound(hint, inside, outside, error, text):
    """Checked in Python, by `replace` and by the reader, with the same error."""
    cls = settings(type("Some", (), {"__annotations__": {"size": hint}}))
    assert cls(inside).size == inside
    for make in (lambda: cls(outside), lambda: dataclasses.replace(cls(inside), size=outside)):
        with pytest.raises(Invalid) as raised:
            make()
        assert (raised.value.field, str(raised.value)) == ("size", error)
    assert read_dataclass(cls, {"size": inside}, "a.b") == cls(inside)
    with pytest.raises(ConfigError) as raised:
        read_dataclass(cls, {"size": outside}, "a.b")
    assert str(raised.value) == f"a.b.size {error}"
    assert type_text(hint) == text


@given(
    st.floats(allow_nan=False), st.floats(-10, 10), st.floats(-10, 10), st.booleans(), st.booleans()
)
def test_an_interval_equals_two_comparisons(x, low, high, low_open, high_open):
    holds = Between(low, high, low_open, high_open).holds(x)
    above = x > low if low_open else x >= low
    below = x < high if high_open else x <= high
    assert holds == (above and below)


def test_no_bound_holds_for_nan():
    bounds = (AtLeast(0), AtLeast(0, also=-1), AtMost(0), Above(0), Below(0), Between(0, 1))
    assert not any(bound.holds(math.nan) for bound in bounds)


@given(st.floats(allow_nan=False))
def test_float32_is_numpys_without_subnormals(x):
    with np.errstate(over="ignore", under="ignore"):
        expected = np.float32(x)
    assert in_float32(x) == (0.0 if abs(expected) < FLOAT32_TINY else expected)


def test_the_least_epsilon_is_the_smallest_normal_float32():
    assert np.float32(FLOAT32_TINY) == np.finfo(np.float32).tiny


@settings
class Size:
    """A base class.

    Attributes:
      heads: a number of heads.
    """

    heads: PositiveInt = 4


@settings
class Parts(Size):
    """Has bounds of its own and of its base, and a check of several fields."""

    parts: PositiveInt = 2
    each: tuple[PositiveFloat, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        require(self.heads % self.parts == 0, "parts", "do not divide heads")


@settings
class More(Parts):
    """Adds a field and inherits the check."""

    more: PositiveInt = 1


@dataclasses.dataclass(frozen=True)
class Plain(Parts):
    """A subclass without the decorator `settings`."""


@pytest.mark.parametrize("cls", [Parts, More, Plain])
def test_bounds_are_inherited_and_checked_before_conditions_on_several_fields(cls):
    """With parts 0 the condition itself would raise ZeroDivisionError."""
    for made, field in (
        (dict(parts=0), "parts"),
        (dict(heads=0), "heads"),
        (dict(parts=3), "parts"),
    ):
        with pytest.raises(Invalid) as error:
            cls(**made)
        assert error.value.field == field
    assert cls(heads=6, parts=3).parts == 3


def test_bounds_of_items_are_checked_and_errors_name_the_item():
    with pytest.raises(ConfigError, match=r"^p\.each\[1\] must be positive, not 0\.0$"):
        read_dataclass(Parts, {"each": [1, 0]}, "p")


def test_a_bound_in_a_union_of_types_raises_type_error():
    hints = {"size": Annotated[int, AtLeast(1)] | Literal["auto"]}
    with pytest.raises(TypeError, match="a bound may annotate one type or None"):
        settings(type("Some", (), {"__annotations__": hints}))("auto")


def test_settings_are_frozen_comparable_and_picklable():
    made = More(heads=6, parts=3)
    assert pickle.loads(pickle.dumps(made)) == made and hash(made) == hash(More(6, 3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.heads = 0


def test_within_prefixes_the_field():
    with pytest.raises(Invalid, match="^is wrong$") as error, within("a"), within("b"):
        raise Invalid("c", "is wrong")
    assert error.value.field == "a.b.c"


@pytest.mark.parametrize("path", ["gcs://bucket/x", "gs:/bucket/x", "gs://"])
def test_a_path_that_cannot_be_used_is_refused_when_it_is_read(path):
    @settings
    class Data:
        path: Annotated[str, IsPath()] | None = None

    with pytest.raises(ConfigError, match=f"^data.path is no path that can be used: {path} "):
        read_dataclass(Data, {"path": path}, "data")
    assert read_dataclass(Data, {"path": "gs://bucket/x"}, "data").path == "gs://bucket/x"

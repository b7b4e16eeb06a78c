"""Bounds of settings, declared in their types: `Annotated[int, AtLeast(1)]`, or `PositiveInt`.

`@settings` makes a class a frozen dataclass that checks these bounds whenever one is made, read from
a config or built in Python. Documentation reads them, too. A bound stands on a plain type, which may
be one of `X | None` (None passes), of `tuple[X, ...]` or of `dict[str, X]`.
"""

import abc
import dataclasses
import functools
import types
import typing
from collections.abc import Sized
from typing import Annotated, Any

from hybridlm.settings.reader import Invalid

FLOAT32_TINY = 2.0**-126  # smallest normal number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound(abc.ABC):
    """One condition on the value of a setting.

    Attributes:
      note: why the bound is there, in a few words; errors give it in brackets.
      none: what None does where the type allows it, e.g. "for no limit"; errors say so.
    """

    note: str = ""
    none: str = ""

    @abc.abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether the value satisfies the bound; NaN never does."""

    @property
    @abc.abstractmethod
    def rule(self) -> str:
        """What follows "must" in an error, e.g. "be at least 1"."""

    @property
    @abc.abstractmethod
    def words(self) -> str:
        """What follows the type in documentation, e.g. ", at least 1"."""

    def sentence(self, value: Any, optional: bool) -> str:
        """What an error says after the name of the setting."""
        why = f" ({self.note})" if self.note else ""
        verb = "" if self.rule.startswith("be ") else "be "
        none = f", or {verb}None{' ' * bool(self.none)}{self.none}" if optional else ""
        return f"must {self.rule}{why}{none}, not {value}"


@dataclasses.dataclass(frozen=True)
class AtLeast(Bound):
    """`low` or more; `also` is one value below that is allowed, too."""

    low: float
    also: float | None = None

    def holds(self, value: Any) -> bool:
        return value >= self.low or value == self.also

    @property
    def rule(self) -> str:
        also = "" if self.also is None else f", or {_number(self.also)}"
        return f"be at least {_number(self.low)}{also}"

    @property
    def words(self) -> str:
        return f", {self.rule.removeprefix('be ')}"


@dataclasses.dataclass(frozen=True)
class AtMost(Bound):
    """`high` or less."""

    high: float

    def holds(self, value: Any) -> bool:
        return value <= self.high

    @property
    def rule(self) -> str:
        return f"be at most {_number(self.high)}"

    @property
    def words(self) -> str:
        return f", at most {_number(self.high)}"


@dataclasses.dataclass(frozen=True)
class Above(Bound):
    """More than `low`."""

    low: float

    def holds(self, value: Any) -> bool:
        return value > self.low

    @property
    def rule(self) -> str:
        return f"be above {_number(self.low)}" if self.low else "be positive"

    @property
    def words(self) -> str:
        return f" above {_number(self.low)}"


@dataclasses.dataclass(frozen=True)
class Below(Bound):
    """Less than `high`."""

    high: float

    def holds(self, value: Any) -> bool:
        return value < self.high

    @property
    def rule(self) -> str:
        return f"be below {_number(self.high)}" if self.high else "be negative"

    @property
    def words(self) -> str:
        return f" below {_number(self.high)}"


@dataclasses.dataclass(frozen=True)
class Between(Bound):
    """From `low` to `high`; an open end is itself left out."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: Any) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    @property
    def _interval(self) -> str:
        low, high = _number(self.low), _number(self.high)
        if not (self.low_open or self.high_open):
            return f"{low} to {high}"
        return f"{'(' if self.low_open else '['}{low}, {high}{')' if self.high_open else ']'}"

    @property
    def rule(self) -> str:
        return f"lie in {self._interval}"

    @property
    def words(self) -> str:
        separator = " in" if self.low_open or self.high_open else ","
        return f"{separator} {self._interval}"


@dataclasses.dataclass(frozen=True)
class NotEmpty(Bound):
    """Text, or settings by name, of at least one; `says` is the whole error."""

    says: str = "is empty"

    def holds(self, value: Sized) -> bool:
        return len(value) > 0

    @property
    def rule(self) -> str:
        return "not be empty"

    @property
    def words(self) -> str:
        return ", not empty"

    def sentence(self, value: Any, optional: bool) -> str:
        return self.says


PositiveInt = Annotated[int, AtLeast(1)]
NonNegativeInt = Annotated[int, AtLeast(0)]
PositiveFloat = Annotated[float, Above(0)]
NonNegativeFloat = Annotated[float, AtLeast(0)]
#: What is added to a denominator. Accelerators and XLA on a CPU flush float32's subnormals to 0.
Epsilon = Annotated[float, AtLeast(FLOAT32_TINY, note="smaller ones are 0 in float32")]


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings[T](cls: type[T]) -> type[T]:
    """Makes a frozen dataclass that checks the bounds of its fields, then its own `__post_init__`.

    The latter is for what concerns several fields: it may rely on the bounds of each. One that
    extends its base class's calls `super().__post_init__()`, as in any dataclass.

    Raises (when one is made):
      Invalid: naming the field that is out of bounds, the bound and the value.
    """
    own = cls.__dict__.get("__post_init__")

    def __post_init__(self) -> None:
        check_bounds(self)
        if own is not None:
            own(self)
        elif hasattr(super(cls, self), "__post_init__"):
            super(cls, self).__post_init__()

    cls.__post_init__ = __post_init__
    return dataclasses.dataclass(frozen=True)(cls)


def check_bounds(config: Any) -> None:
    """Raises `Invalid` for the first field of a dataclass that is out of its declared bounds."""
    for name, hint in _hints(type(config)).items():
        _check(hint, getattr(config, name), name, optional=False)


def bounds_of(hint: Any) -> tuple[Any, tuple[Bound, ...]]:
    """(the type without its bounds, the bounds) of an annotation."""
    if typing.get_origin(hint) is not Annotated:
        return hint, ()
    inner, *metadata = typing.get_args(hint)
    return inner, tuple(m for m in metadata if isinstance(m, Bound))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _check(hint: Any, value: Any, field: str, optional: bool) -> None:
    hint, bounds = bounds_of(hint)
    for bound in bounds:
        if not bound.holds(value):
            raise Invalid(field, bound.sentence(value, optional))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in args if a is not type(None)]
        if len(options) > 1 and any(bounds_of(a)[1] for a in options):
            raise TypeError(f"{field}: a bound stands on one type or None, not on {hint}")
        if len(options) == 1 and value is not None:
            _check(options[0], value, field, optional=True)
    elif origin is tuple:
        for i, item in enumerate(value):
            _check(args[0], item, f"{field}[{i}]", optional=False)
    elif origin is dict:
        for key, item in value.items():
            _check(args[1], item, f"{field}.{key}", optional=False)


def _number(value: float) -> str:
    if isinstance(value, int) and value >= 2**20 and value.bit_count() == 1:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}" if isinstance(value, int) else repr(value)

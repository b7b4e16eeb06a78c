"""Bounds of settings, declared in their types: `Annotated[int, AtLeast(1)]`, or `PositiveInt`.

`@settings` makes a class a frozen dataclass that checks these bounds whenever an instance is
created, from a config or in Python. The documentation is generated from them, too. A bound
annotates a plain type X, alone or in `X | None` (None is always allowed), `tuple[X, ...]` or
`dict[str, X]`.
"""

import abc
import dataclasses
import functools
import math
import struct
import types
import typing
from collections.abc import Sized
from typing import Annotated, Any

from hybridlm.errors import UserError
from hybridlm.settings.reader import Invalid
from hybridlm.storage import check_path, is_remote

FLOAT32_TINY = 2.0**-126  # smallest normal number of float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound(abc.ABC):
    """One condition on the value of a setting.

    Attributes:
      note: the reason for the bound, in a few words; errors append it in brackets.
      none: the meaning of None if the type allows it, e.g. "for no limit"; errors append it.
    """

    note: str = ""
    none: str = ""

    @abc.abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether the value satisfies the bound; False for NaN."""

    def holds_in_float32(self, value: float) -> bool:
        """Whether a value that satisfies the bound is not rounded onto an end that is excluded."""
        return True

    @property
    @abc.abstractmethod
    def requirement(self) -> str:
        """The text after "must" in an error, e.g. "be at least 1"."""

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """The text after the type in documentation, e.g. ", at least 1"."""

    def error_message(self, value: Any, optional: bool) -> str:
        """The text after the name of the setting in an error."""
        note = f" ({self.note})" if self.note else ""
        verb = "" if self.requirement.startswith("be ") else "be "
        none = f", or {verb}None{' ' * bool(self.none)}{self.none}" if optional else ""
        rounded = in_float32(value) if isinstance(value, float) and self.holds(value) else value
        which = "" if rounded == value else f", which is {rounded} in float32"
        return f"must {self.requirement}{note}{none}, not {value}{which}"


@dataclasses.dataclass(frozen=True)
class AtLeast(Bound):
    """At least `low`; `also` is one lower value that is allowed too."""

    low: float
    also: float | None = None

    def holds(self, value: Any) -> bool:
        return value >= self.low or value == self.also

    @property
    def requirement(self) -> str:
        also = "" if self.also is None else f", or {_number(self.also)}"
        return f"be at least {_number(self.low)}{also}"

    @property
    def description(self) -> str:
        return f", {self.requirement.removeprefix('be ')}"


@dataclasses.dataclass(frozen=True)
class AtMost(Bound):
    """At most `high`."""

    high: float

    def holds(self, value: Any) -> bool:
        return value <= self.high

    @property
    def requirement(self) -> str:
        return f"be at most {_number(self.high)}"

    @property
    def description(self) -> str:
        return f", at most {_number(self.high)}"


@dataclasses.dataclass(frozen=True)
class Above(Bound):
    """More than `low`."""

    low: float

    def holds(self, value: Any) -> bool:
        return value > self.low

    def holds_in_float32(self, value: float) -> bool:
        return self.holds(in_float32(value))

    @property
    def requirement(self) -> str:
        return f"be above {_number(self.low)}" if self.low else "be positive"

    @property
    def description(self) -> str:
        return f" above {_number(self.low)}"


@dataclasses.dataclass(frozen=True)
class Below(Bound):
    """Less than `high`."""

    high: float

    def holds(self, value: Any) -> bool:
        return value < self.high

    def holds_in_float32(self, value: float) -> bool:
        return self.holds(in_float32(value))

    @property
    def requirement(self) -> str:
        return f"be below {_number(self.high)}" if self.high else "be negative"

    @property
    def description(self) -> str:
        return f" below {_number(self.high)}"


@dataclasses.dataclass(frozen=True)
class Between(Bound):
    """Between `low` and `high`; an open end is excluded."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: Any) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def holds_in_float32(self, value: float) -> bool:
        rounded = in_float32(value)
        above = not self.low_open or rounded > self.low
        return above and (not self.high_open or rounded < self.high)

    @property
    def _interval(self) -> str:
        low, high = _number(self.low), _number(self.high)
        if not (self.low_open or self.high_open):
            return f"{low} to {high}"
        return f"{'(' if self.low_open else '['}{low}, {high}{')' if self.high_open else ']'}"

    @property
    def requirement(self) -> str:
        return f"lie in {self._interval}"

    @property
    def description(self) -> str:
        separator = " in" if self.low_open or self.high_open else ","
        return f"{separator} {self._interval}"


@dataclasses.dataclass(frozen=True)
class NotEmpty(Bound):
    """Text or settings by name that must not be empty; `message` is the complete error."""

    message: str = "is empty"

    def holds(self, value: Sized) -> bool:
        return len(value) > 0

    @property
    def requirement(self) -> str:
        return "not be empty"

    @property
    def description(self) -> str:
        return ", not empty"

    def error_message(self, value: Any, optional: bool) -> str:
        return self.message


@dataclasses.dataclass(frozen=True)
class IsPath(Bound):
    """Text that names a file or folder of this machine, or of a bucket: gs://…, s3://…"""

    def holds(self, value: str) -> bool:
        return _path_error(value) is None

    @property
    def requirement(self) -> str:
        return "be a path"

    @property
    def description(self) -> str:
        return ", local, gs:// or s3://"

    def error_message(self, value: Any, optional: bool) -> str:
        return f"is no path that can be used: {_path_error(value)}"


@dataclasses.dataclass(frozen=True)
class IsLocalPath(IsPath):
    """Text that names a file or folder of this machine."""

    def holds(self, value: str) -> bool:
        return super().holds(value) and not is_remote(value)

    @property
    def description(self) -> str:
        return ", local"

    def error_message(self, value: Any, optional: bool) -> str:
        if super().holds(value):
            return f"is {value}, in a bucket: name a folder of this machine"
        return super().error_message(value, optional)


def _path_error(value: str) -> str | None:
    try:
        check_path(value)
    except UserError as error:
        return str(error)
    return None


PositiveInt = Annotated[int, AtLeast(1)]
NonNegativeInt = Annotated[int, AtLeast(0)]
PositiveFloat = Annotated[float, Above(0)]
NonNegativeFloat = Annotated[float, AtLeast(0)]
#: Tokens of a sequence. RoPE multiplies positions by its frequencies in float32.
LONGEST = AtMost(2**24, note="float32 tells no further positions apart")
#: A number added to a denominator. Accelerators and XLA on CPUs flush float32 subnormals to 0.
Epsilon = Annotated[float, AtLeast(FLOAT32_TINY, note="smaller ones are 0 in float32")]


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings[T](cls: type[T]) -> type[T]:
    """Makes a frozen dataclass that checks the bounds of its fields, then its own `__post_init__`.

    `__post_init__` is for conditions on several fields and may rely on the bounds of each. To
    extend the base class's, call `super().__post_init__()`, as in any dataclass.

    Raises (when an instance is created):
      Invalid: names the field that is out of bounds, the bound and the value.
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
    """Raises `Invalid` for the first field of a dataclass that is out of bounds."""
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
        rounds = isinstance(value, float) and not bound.holds_in_float32(value)
        if rounds or not bound.holds(value):
            raise Invalid(field, bound.error_message(value, optional))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in args if a is not type(None)]
        if len(options) > 1 and any(bounds_of(a)[1] for a in options):
            raise TypeError(f"{field}: a bound may annotate one type or None, not {hint}")
        if len(options) == 1 and value is not None:
            _check(options[0], value, field, optional=True)
    elif origin is tuple:
        for i, item in enumerate(value):
            _check(args[0], item, f"{field}[{i}]", optional=False)
    elif origin is dict:
        for key, item in value.items():
            _check(args[1], item, f"{field}.{key}", optional=False)


def in_float32(value: float) -> float:
    """The number as devices have it: rounded, and 0 instead of a subnormal one."""
    try:
        (rounded,) = struct.unpack("f", struct.pack("f", value))
    except OverflowError:
        return math.copysign(math.inf, value)
    return 0.0 if abs(rounded) < FLOAT32_TINY else rounded


def _number(value: float) -> str:
    if isinstance(value, int) and value >= 2**20 and value.bit_count() == 1:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}" if isinstance(value, int) else repr(value)

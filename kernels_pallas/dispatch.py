"""Choosing a backend, fail-closed: an unsupported call is slower or an error, never wrong.

Each op declares its backends as data, a tuple of `Backend` rows. A row with `limits=None` is a plain
XLA form that supports every valid call. A kernel's row lists, for each feature, the values that its
tests cover; a feature that the row does not mention is not covered. The platform is a feature of every
case. So is a mesh over which XLA would have to partition a kernel, because XLA cannot do that; inside a
`jax.shard_map` over the mesh's axes nothing is left to partition.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import measured

IMPLS = ("auto", "reference", "chunked", "pallas")
_AUTO = contextvars.ContextVar("auto", default="auto")
_TARGET = contextvars.ContextVar("target", default=None)
_CHIP = contextvars.ContextVar("chip", default=None)
_CHOICES = contextvars.ContextVar("choices", default=None)


class Target(NamedTuple):
    """What kernels are compiled for.

    Attributes:
      platform: "cpu", "tpu" or "gpu".
      interpret: False compiles kernels; True or `pltpu.InterpretParams` interprets them on any device.
    """

    platform: str
    interpret: Any = False


@contextlib.contextmanager
def kernels_for(platform: str, interpret: Any = False, chip: str | None = None) -> Iterator[None]:
    """Ops traced inside use the kernels of `platform`: to compile for a chip that is not attached or,
    with `interpret`, to run its kernels without it. Gradients keep the target of their forward pass,
    so a backward pass may be traced outside.

    Arguments:
      chip: the device kind as jax names it ("NVIDIA H200"), for rows of `measured`; None is unknown.
    """
    tokens = _TARGET.set(Target(platform, interpret)), _CHIP.set(chip)
    try:
        yield
    finally:
        _TARGET.reset(tokens[0])
        _CHIP.reset(tokens[1])


def target() -> Target:
    """The target of ops traced now: that of `kernels_for`, otherwise jax's default backend."""
    return _TARGET.get() or Target(jax.default_backend())


def chip() -> str | None:
    """The device kind that ops traced now run on: that of `kernels_for`, which may be unknown (None),
    otherwise that of jax's first device."""
    return jax.devices()[0].device_kind if _TARGET.get() is None else _CHIP.get()


@contextlib.contextmanager
def auto_means(impl: str) -> Iterator[None]:
    """Ops traced inside with impl="auto" run as `impl`: to compare a whole mixer with its reference
    form, or to compare backends. Programs that are already compiled do not change."""
    token = _AUTO.set(impl)
    try:
        yield
    finally:
        _AUTO.reset(token)


class Choice(NamedTuple):
    """What `resolve` returned for one call.

    Attributes:
      op, backend: their names.
      case: the features that the op gave.
      tokens: length of the call's rows, if the op gave it.
    """

    op: str
    backend: str
    case: dict[str, Any]
    tokens: int | None


@contextlib.contextmanager
def choices() -> Iterator[list[Choice]]:
    """A list that every op traced inside joins: to see which forms a program consists of."""
    made: list[Choice] = []
    token = _CHOICES.set(made)
    try:
        yield made
    finally:
        _CHOICES.reset(token)


class _Any:
    """A container of all values, for a feature that a kernel supports at any value."""

    def __contains__(self, value) -> bool:
        return True

    def __repr__(self) -> str:
        return "anything"


ANY = _Any()


@dataclasses.dataclass(frozen=True)
class Backend:
    """One row of an op's support table.

    Arguments:
      name: what `resolve` returns, unique in the table ("chunked", "tpu", "hopper").
      impl: the public name that selects it: "reference", "chunked" or "pallas".
      limits: for each feature of a case the values covered (any container, `range`
        included); None covers every case.
      auto: whether "auto" selects it for every case that it covers; False for a kernel that "auto"
        selects only for calls for which it was measured to be right and the fastest (`measured`).
    """

    name: str
    impl: str
    limits: Mapping[str, Collection] | None = None
    auto: bool = True

    def uncovered(self, case: Mapping[str, Any]) -> list[str]:
        """The features of `case` outside this backend's limits, each as `name=value`."""
        if self.limits is None:
            return []
        return [f"{k}={v}" for k, v in case.items() if v not in self.limits.get(k, ())]

    def describe(self) -> str:
        limits = self.limits or {}
        return f"{self.name} (" + ", ".join(f"{k} in {v}" for k, v in limits.items()) + ")"


#: The table of an op without kernels.
XLA_ONLY = (Backend("reference", "reference"), Backend("chunked", "chunked"))


def resolve(
    op_name: str,
    impl: str,
    case: Mapping[str, Any],
    support: tuple[Backend, ...] = XLA_ONLY,
    tokens: int | None = None,
) -> str:
    """The name of the backend that runs this call.

    Arguments:
      op_name: for error messages.
      impl: "auto" selects a kernel if the table covers the case, otherwise the chunked form;
        "reference", "chunked" and "pallas" select exactly that.
      case: the features of the call, e.g. `dict(dtype="bfloat16", window=128)`; `resolve` adds the
        platform of `target()` and the axes of the current mesh that XLA partitions over.
      support: the op's table.
      tokens: length of the call's rows; a kernel may be the fastest at some lengths only.

    Raises ValueError for an unknown impl, and for "pallas" if no kernel covers the case.
    """
    backend = _resolve(op_name, impl, case, support, tokens)
    if (made := _CHOICES.get()) is not None:
        made.append(Choice(op_name, backend, dict(case), tokens))
    return backend


def _resolve(op_name, impl, case, support, tokens) -> str:
    impl = _AUTO.get() if impl == "auto" else impl
    if impl not in IMPLS:
        raise ValueError(f"{op_name}: impl must be one of {', '.join(IMPLS)}, got {impl!r}.")
    features, case = case, dict(platform=target().platform, **_partitioned(), **case)
    kernels = [b for b in support if b.impl == "pallas"]
    if impl in ("auto", "pallas"):
        for backend in kernels:
            if backend.uncovered(case):
                continue
            if impl == "pallas" or backend.auto:
                return backend.name
            if _is_fastest(op_name, backend.name, features, tokens):
                return backend.name
    if impl == "pallas":
        if not kernels:
            raise ValueError(
                f"{op_name}: impl='pallas' has no kernel; use 'auto', 'chunked' or 'reference'."
            )
        missing = "; ".join(f"{b.describe()} lacks {', '.join(b.uncovered(case))}" for b in kernels)
        raise ValueError(f"{op_name}: impl='pallas' does not support this call: {missing}.")
    wanted = "chunked" if impl == "auto" else impl
    return next(b.name for b in support if b.impl == wanted)


def _is_fastest(op: str, backend: str, features: Mapping[str, Any], tokens: int | None) -> bool:
    rows = measured.rows_of(op, backend)
    return bool(rows) and any(r.covers(op, backend, chip(), features, tokens) for r in rows)


def _partitioned() -> dict[str, str]:
    mesh, manual = jax.sharding.get_abstract_mesh(), jax.sharding.AxisType.Manual
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    split = [f"{name} {size}" for name, size, kind in axes if size > 1 and kind != manual]
    return dict(partitioned_over=", ".join(split)) if split else {}


def check_shape(op_name: str, name: str, array, shape: tuple[int, ...], dims: str) -> None:
    """Raises ValueError unless `array.shape == shape`; `dims` names the axes, "B T D"."""
    if array.shape != shape:
        raise ValueError(
            f"{op_name}: {name} must have shape ({dims.replace(' ', ', ')}) = {shape}, "
            f"got {array.shape}."
        )


def check_arrays(op_name: str, **arrays) -> None:
    """Raises ValueError unless every array (None is skipped) has a floating dtype and no dimension of
    size 0."""
    for name, array in arrays.items():
        if array is None:
            continue
        check_dtype(op_name, name, array, "floating point")
        if 0 in array.shape:
            raise ValueError(
                f"{op_name}: {name} must have no dimension of size 0, got shape {array.shape}."
            )


def number(op_name: str, name: str, value: float | None) -> float | None:
    """`value` as a Python float, or None; raises ValueError unless it is None or a finite number.

    A numpy number would promote float32 arrays to float64, and an array would be differentiated.
    """
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise ValueError(
            f"{op_name}: {name} must be None or a Python number, got {type(value).__name__}."
        )
    if not math.isfinite(value):
        raise ValueError(f"{op_name}: {name} must be a finite number, got {value}.")
    return float(value)


#: The kinds of a state's arrays that are not floating point, by name.
_OF_STATES = {"segment_ids": "ids", "positions": "integers", "written": "booleans"}


def check_state(op_name: str, state: Any, kind: type, **sizes: int) -> None:
    """Raises ValueError unless `state` is None or a valid `kind`.

    A field `name_BSK` must have the shape (B, S, K); the size of a letter is that in `sizes`, or else
    that of the first field with the letter. It must hold floating point numbers, or what `_OF_STATES`
    lists. A field whose default is None may be None.
    """
    if state is None:
        return
    if not isinstance(state, kind):
        raise ValueError(
            f"{op_name}: initial_state must be a {kind.__name__}, or None, "
            f"got a {type(state).__name__}."
        )
    for field, array in state._asdict().items():
        name, dims = field.rsplit("_", 1)
        if array is None and field in kind._field_defaults:
            continue
        if len(dims) == array.ndim:
            sizes = dict(zip(dims, array.shape)) | sizes
        shape = tuple(sizes.get(letter, letter) for letter in dims)
        check_shape(op_name, f"initial_state.{field}", array, shape, " ".join(dims))
        holds = _OF_STATES.get(name, "floating point")
        check_dtype(op_name, f"initial_state.{field}", array, holds)


def check_dtype(op_name: str, name: str, array, holds: str) -> None:
    """Raises ValueError unless `array` holds what `holds` says: "floating point", "booleans",
    "integers" or "ids", which are integers of at most 32 bits: 64-bit ids, truncated, might no longer
    distinguish documents."""
    kind = dict(booleans=jnp.bool_, integers=jnp.integer, ids=jnp.integer).get(holds, jnp.floating)
    said = "integers (0 = padding)" if holds == "ids" else holds
    if not jnp.issubdtype(array.dtype, kind):
        raise ValueError(f"{op_name}: {name} must be {said}, got {array.dtype}.")
    if holds == "ids" and array.dtype.itemsize > 4:
        raise ValueError(
            f"{op_name}: {name} must be integers of at most 32 bits, got {array.dtype}."
        )


def dtypes(*arrays) -> str:
    """The dtypes of the arrays as one feature of a case: "bfloat16", "bfloat16 and float32"."""
    return " and ".join(sorted({str(array.dtype) for array in arrays}))


def accumulator_dtype(*arrays):
    """float64 if an input is float64, otherwise float32."""
    return jnp.promote_types(jnp.float32, jnp.result_type(*arrays))

"""Choosing a backend, fail-closed: an unsupported call is slower or an error, never wrong.

Each op declares its backends as data, a tuple of `Backend` rows. A row with `limits=None`
is a plain XLA form that takes every valid call. A kernel's row lists, feature by feature,
the values its tests cover; a feature the row does not mention is not covered. The platform is a
feature of every case, and so is a mesh over which XLA would have to partition a kernel, which it
cannot: inside a `jax.shard_map` over its axes there is nothing left to partition.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

IMPLS = ("auto", "reference", "chunked", "pallas")
_AUTO = contextvars.ContextVar("auto", default="auto")
_TARGET = contextvars.ContextVar("target", default=None)


class Target(NamedTuple):
    """What kernels are made for: `platform` ("cpu", "tpu", "gpu"), and how `pallas_call` interprets
    them: False compiles, True or `pltpu.InterpretParams` runs them on any device."""

    platform: str
    interpret: Any = False


@contextlib.contextmanager
def kernels_for(platform: str, interpret: Any = False) -> Iterator[None]:
    """Inside, ops traced take kernels of `platform`: to compile for a chip that is not there, or,
    with `interpret`, to run its kernels without it. Ops carry the target into their gradients, so
    that a backward pass may be traced outside."""
    token = _TARGET.set(Target(platform, interpret))
    try:
        yield
    finally:
        _TARGET.reset(token)


def target() -> Target:
    """What ops traced now are for: that of `kernels_for`, otherwise jax's default backend."""
    return _TARGET.get() or Target(jax.default_backend())


@contextlib.contextmanager
def auto_means(impl: str) -> Iterator[None]:
    """Inside, ops traced with impl="auto" run as `impl`: to hold a whole mixer to its reference
    form, or to compare backends. What is already compiled does not change."""
    token = _AUTO.set(impl)
    try:
        yield
    finally:
        _AUTO.reset(token)


class _Any:
    """A container of everything: what a kernel takes whatever its value is."""

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
      impl: the public name it answers to: "reference", "chunked" or "pallas".
      limits: for each feature of a case the values covered (any container, `range`
        included); None covers every case.
      auto: whether "auto" takes it too; not where nobody has measured it ahead of the
        chunked form on its chip.
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


#: The table of an op that has no kernel yet.
XLA_ONLY = (Backend("reference", "reference"), Backend("chunked", "chunked"))


def resolve(
    op_name: str, impl: str, case: Mapping[str, Any], support: tuple[Backend, ...] = XLA_ONLY
) -> str:
    """The name of the backend that runs this call.

    Arguments:
      op_name: for messages.
      impl: "auto" takes a kernel only where the table covers the case, otherwise chunked;
        "reference", "chunked" and "pallas" take exactly that.
      case: what the call asks for, e.g. `dict(dtype="bfloat16", window=128)`; the platform of
        `target()` is added, and the axes of the mesh in force that XLA partitions over.
      support: the op's table.

    Raises ValueError for an unknown impl, and for "pallas" where no kernel covers the case.
    """
    impl = _AUTO.get() if impl == "auto" else impl
    if impl not in IMPLS:
        raise ValueError(f"{op_name}: impl must be one of {', '.join(IMPLS)}, got {impl!r}.")
    case = dict(platform=target().platform, **_partitioned(), **case)
    kernels = [b for b in support if b.impl == "pallas"]
    if impl in ("auto", "pallas"):
        for backend in kernels:
            if (backend.auto or impl == "pallas") and not backend.uncovered(case):
                return backend.name
    if impl == "pallas":
        if not kernels:
            raise ValueError(
                f"{op_name}: impl='pallas' has no kernel yet; use 'auto', 'chunked' or 'reference'."
            )
        missing = "; ".join(f"{b.describe()} lacks {', '.join(b.uncovered(case))}" for b in kernels)
        raise ValueError(f"{op_name}: impl='pallas' does not support this call: {missing}.")
    wanted = "chunked" if impl == "auto" else impl
    return next(b.name for b in support if b.impl == wanted)


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


def check_floating(op_name: str, **arrays) -> None:
    """Raises ValueError unless every array given (None is skipped) has a floating dtype."""
    for name, array in arrays.items():
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{op_name}: {name} must be floating point, got {array.dtype}.")


def dtypes(*arrays) -> str:
    """The dtypes of the arrays as one feature of a case: "bfloat16", "bfloat16 and float32"."""
    return " and ".join(sorted({str(array.dtype) for array in arrays}))


def accumulator_dtype(*arrays):
    """float64 where an input is float64, otherwise float32."""
    return jnp.promote_types(jnp.float32, jnp.result_type(*arrays))

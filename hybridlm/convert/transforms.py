"""How tensors of another library become parameters here, and back: maps that can be inverted.

A transform takes the tensors of one rule of a table (`hybridlm.convert.table`) to the parameters of
that rule, and back; both directions only move entries, so nothing is rounded. It works on numpy
arrays and, so that shapes are known without data, on the abstract arrays of `jax.eval_shape`.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from hybridlm.models.positional import halves_from_pairs

Array = Any


class Transform(abc.ABC):
    """An invertible map between lists of arrays."""

    @abc.abstractmethod
    def ours(self, theirs: Sequence[Array]) -> list[Array]:
        """The parameters, from the other library's tensors."""

    @abc.abstractmethod
    def theirs(self, ours: Sequence[Array]) -> list[Array]:
        """The inverse of `ours`."""


class Each(Transform):
    """A map of single arrays, applied to each array of a list."""

    def ours(self, theirs: Sequence[Array]) -> list[Array]:
        return [self.forward(x) for x in theirs]

    def theirs(self, ours: Sequence[Array]) -> list[Array]:
        return [self.inverse(x) for x in ours]

    @abc.abstractmethod
    def forward(self, x: Array) -> Array:
        """One parameter from one tensor."""

    @abc.abstractmethod
    def inverse(self, x: Array) -> Array:
        """One tensor from one parameter."""


@dataclasses.dataclass(frozen=True)
class Same(Each):
    """The same array."""

    def forward(self, x: Array) -> Array:
        return x

    def inverse(self, x: Array) -> Array:
        return x


@dataclasses.dataclass(frozen=True)
class Transposed(Each):
    """PyTorch's linear maps are (out, in), ours are (in, out): the last two axes change places."""

    def forward(self, x: Array) -> Array:
        return x.swapaxes(-1, -2)

    def inverse(self, x: Array) -> Array:
        return x.swapaxes(-1, -2)


@dataclasses.dataclass(frozen=True)
class HalvesFromPairs(Each):
    """Rows of q and k of a model that rotates neighbours (x_2i, x_2i+1), for one that rotates halves.

    Applied to tensors (heads * size, ...) and vectors (heads * size,), before they are transposed.

    Attributes:
      heads: of the tensor, query or key heads.
      rotated: dimensions of each head that are rotated, from `first`.
      first: the first rotated dimension.
    """

    heads: int
    rotated: int
    first: int = 0

    def forward(self, x: Array) -> Array:
        return self._permuted(x, lambda order: order)

    def inverse(self, x: Array) -> Array:
        return self._permuted(x, np.argsort)

    def _permuted(self, x: Array, direction: Any) -> Array:
        size = x.shape[0] // self.heads
        order = np.arange(size)
        last = self.first + self.rotated
        order[self.first : last] = self.first + halves_from_pairs(self.rotated)
        rows = np.arange(self.heads)[:, None] * size + direction(order)[None]
        return x[rows.reshape(-1)]


@dataclasses.dataclass(frozen=True)
class Split(Transform):
    """One tensor whose first axis holds several parameters one after the other: fused projections.

    Attributes:
      sizes: rows of each part, within a group.
      groups: the rows are cut into this many equal groups, each of which holds all parts (the keys
        and values of one head, for example).
    """

    sizes: tuple[int, ...]
    groups: int = 1

    def ours(self, theirs: Sequence[Array]) -> list[Array]:
        (x,) = theirs
        grouped = x.reshape(self.groups, sum(self.sizes), *x.shape[1:])
        ends = np.cumsum(self.sizes)
        return [
            grouped[:, end - size : end].reshape(self.groups * size, *x.shape[1:])
            for size, end in zip(self.sizes, ends)
        ]

    def theirs(self, ours: Sequence[Array]) -> list[Array]:
        rest = ours[0].shape[1:]
        parts = [x.reshape(self.groups, size, *rest) for x, size in zip(ours, self.sizes)]
        return [_namespace(ours[0]).concatenate(parts, axis=1).reshape(-1, *rest)]


@dataclasses.dataclass(frozen=True)
class Columns(Transform):
    """One tensor whose last axis holds parameters of one shape: one after the other, or in turn.

    Attributes:
      parts: how many.
      in_turn: entry i of each part, then entry i + 1 of each (gpt-oss's gate and up).
    """

    parts: int
    in_turn: bool = False

    def ours(self, theirs: Sequence[Array]) -> list[Array]:
        (x,) = theirs
        if self.in_turn:
            return [x[..., i :: self.parts] for i in range(self.parts)]
        size = x.shape[-1] // self.parts
        return [x[..., i * size : (i + 1) * size] for i in range(self.parts)]

    def theirs(self, ours: Sequence[Array]) -> list[Array]:
        namespace = _namespace(ours[0])
        if self.in_turn:
            stacked = namespace.stack(list(ours), axis=-1)
            return [stacked.reshape(*ours[0].shape[:-1], -1)]
        return [namespace.concatenate(list(ours), axis=-1)]


@dataclasses.dataclass(frozen=True)
class Joined(Transform):
    """Several tensors, one after the other on the first axis, as one parameter.

    Attributes:
      sizes: rows of each tensor.
      groups: as in `Split`.
    """

    sizes: tuple[int, ...]
    groups: int = 1

    def ours(self, theirs: Sequence[Array]) -> list[Array]:
        return Split(self.sizes, self.groups).theirs(theirs)

    def theirs(self, ours: Sequence[Array]) -> list[Array]:
        return Split(self.sizes, self.groups).ours(ours)


@dataclasses.dataclass(frozen=True)
class Recut(Transform):
    """Parameters one after the other on the first axis, in as many tensors that are cut elsewhere.

    The tensors may be cut anywhere; written, all have the rows of the first but the last, which has
    what is left, as torch.chunk cuts.

    Attributes:
      sizes: rows of each parameter.
    """

    sizes: tuple[int, ...]

    def ours(self, theirs: Sequence[Array]) -> list[Array]:
        whole = _namespace(theirs[0]).concatenate(list(theirs), axis=0)
        return Split(self.sizes).ours([whole])

    def theirs(self, ours: Sequence[Array]) -> list[Array]:
        whole = _namespace(ours[0]).concatenate(list(ours), axis=0)
        rows = -(-sum(self.sizes) // len(self.sizes))
        return [whole[i * rows : (i + 1) * rows] for i in range(len(self.sizes))]


@dataclasses.dataclass(frozen=True)
class Stacked(Transform):
    """Tensors of one shape, such as those of the experts, as one parameter with a leading axis."""

    def ours(self, theirs: Sequence[Array]) -> list[Array]:
        return [_namespace(theirs[0]).stack(list(theirs))]

    def theirs(self, ours: Sequence[Array]) -> list[Array]:
        (x,) = ours
        return [x[i] for i in range(x.shape[0])]


@dataclasses.dataclass(frozen=True)
class ConvKernel(Each):
    """A depthwise convolution (channels, 1, width), oldest tap first, as (width, channels) newest first."""

    def forward(self, x: Array) -> Array:
        return x[:, 0, ::-1].swapaxes(0, 1)

    def inverse(self, x: Array) -> Array:
        return x.swapaxes(0, 1)[:, None, ::-1]


@dataclasses.dataclass(frozen=True)
class Reshaped(Each):
    """The same entries in another shape.

    Attributes:
      to: of the parameter.
      of: of the tensor.
    """

    to: tuple[int, ...]
    of: tuple[int, ...]

    def forward(self, x: Array) -> Array:
        return x.reshape(self.to)

    def inverse(self, x: Array) -> Array:
        return x.reshape(self.of)


@dataclasses.dataclass(frozen=True)
class Chain(Transform):
    """Transforms one after the other, in the order from the tensors to the parameters."""

    steps: tuple[Transform, ...]

    def ours(self, theirs: Sequence[Array]) -> list[Array]:
        arrays = list(theirs)
        for step in self.steps:
            arrays = step.ours(arrays)
        return arrays

    def theirs(self, ours: Sequence[Array]) -> list[Array]:
        arrays = list(ours)
        for step in reversed(self.steps):
            arrays = step.theirs(arrays)
        return arrays


SAME, TRANSPOSED = Same(), Transposed()


def chain(*steps: Transform) -> Transform:
    """`steps` one after the other, from the tensors to the parameters."""
    return Chain(steps)


def _namespace(x: Array) -> Any:
    return x.__array_namespace__()

"""The part of the parameters that is trained, where a glob freezes the rest.

Gradients, the optimizer's state and the moving average are trees of this part alone: nested dicts
as the parameters are, without arrays that are frozen whole. Of an array that layers share, the part
has the rows of the layers that are trained. So what is frozen is never written and has no moments.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hybridlm.errors import ConfigError
from hybridlm.models.params import Model, Params
from hybridlm.settings import globs

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Which parameters are trained; by default all, and then trees pass through unchanged.

    Attributes:
      frozen: paths of the arrays that are frozen whole.
      rows: of the arrays that are frozen in part, the indices on the leading axis that are trained.
    """

    frozen: frozenset[Path] = frozenset()
    rows: Mapping[Path, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, freeze: str) -> "Trainable":
        """What `freeze`, globs over the model's parameter names, leaves to train.

        Raises:
          ConfigError: where a glob matches no parameter, or nothing is left to train.
        """
        if not freeze:
            return cls()
        names = list(model.by_name(model.abstract))
        chosen = set(globs.select(freeze, names, "optimizer.freeze"))
        if len(chosen) == len(names):
            raise ConfigError(
                f"optimizer.freeze is {freeze!r}, which freezes every parameter: leave some to train"
            )
        frozen, rows = set[Path](), {}
        for path, shared in flatten_dict(model.names).items():
            left = tuple(i for i, name in enumerate(shared) if name not in chosen)
            if not left:
                frozen.add(path)
            elif len(left) < len(shared):
                rows[path] = left
        return cls(frozenset(frozen), rows)

    @property
    def all(self) -> bool:
        """Whether nothing is frozen."""
        return not (self.frozen or self.rows)

    def arrays(self, tree: Params) -> Params:
        """A tree like the parameters, without the arrays that are frozen whole."""
        if not self.frozen:
            return tree
        flat = flatten_dict(tree)
        return unflatten_dict({path: x for path, x in flat.items() if path not in self.frozen})

    def cut(self, arrays: Params) -> Params:
        """The trained rows of what `arrays` returned; numpy or jax arrays, or shapes."""
        return self._map_rows(_taken, arrays)

    def take(self, tree: Params) -> Params:
        """The part of a tree like the parameters that is trained."""
        return self.cut(self.arrays(tree))

    def merge(self, tree: Params, arrays: Params) -> Params:
        """`tree` with the arrays of `arrays`, which are whole."""
        if not self.frozen:
            return arrays
        return unflatten_dict(flatten_dict(tree) | flatten_dict(arrays))

    def put(self, tree: Params, part: Params) -> Params:
        """`tree` with the trained part replaced by `part`, as `take` gives it."""
        return self.merge(tree, self._map_rows(_with_rows, self.arrays(tree), part))

    def _map_rows(self, function: Any, *trees: Params) -> Params:
        """The first of `trees`, or the last, with `function(rows, *arrays)` where rows are cut."""
        if not self.rows:
            return trees[-1]
        flat = [flatten_dict(tree) for tree in trees]
        made = {path: function(rows, *(f[path] for f in flat)) for path, rows in self.rows.items()}
        return unflatten_dict(flat[-1] | made)

    def multipliers(self, model: Model, by_name: Mapping[str, float]) -> Params:
        """Factors of the trained part: a number, or an array (rows, 1, ...) where rows differ."""

        def of(path: Path, names: tuple[str, ...]) -> Any:
            rows = self.rows.get(path, range(len(names)))
            found = [by_name[names[i]] for i in rows]
            if len(set(found)) == 1:
                return found[0]
            return np.array(found).reshape(-1, *[1] * (len(shapes[path].shape) - 1))

        shapes = flatten_dict(model.abstract)
        names = flatten_dict(model.names)
        return unflatten_dict({p: of(p, n) for p, n in names.items() if p not in self.frozen})

    def count(self, model: Model) -> int:
        """The number of trained parameters."""
        part = self.take(model.abstract)
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(part))


def _taken(rows: tuple[int, ...], x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(rows), *x.shape[1:]), x.dtype)
    return x[_index(rows)]


def _with_rows(rows: tuple[int, ...], x: Any, part: Any) -> Any:
    if isinstance(x, jax.Array):
        return x.at[_index(rows)].set(part)
    x = np.array(x)
    x[_index(rows)] = part
    return x


def _index(rows: tuple[int, ...]) -> Any:
    """A slice where the rows are adjacent, which XLA neither gathers nor scatters."""
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if len(rows) == last - first + 1 else np.array(rows)

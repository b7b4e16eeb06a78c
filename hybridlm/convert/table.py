"""A tensor table: which tensors of another library hold which parameters, in both directions.

A table is a list of rules, made by a family from the settings of a model. A rule names tensors and
parameters (`Model.by_name`) and the transform between them. Every parameter stands in exactly one
rule, so a table says what a checkpoint must hold, with shapes, before anything is read.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hybridlm.convert.transforms import SAME, TRANSPOSED, Chain, Recut, Transform, chain
from hybridlm.models.params import Model

Shape = tuple[int, ...]


class Rule(NamedTuple):
    """Tensors `theirs` hold parameters `ours`, after the transform."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    transform: Transform


def rule(
    theirs: str | Sequence[str], ours: str | Sequence[str], transform: Transform = SAME
) -> Rule:
    """A rule; a single name may stand for a tuple of one."""
    return Rule(_names(theirs), _names(ours), transform)


def linear(
    theirs: str, ours: str, *, bias: bool = False, transform: Transform = SAME
) -> list[Rule]:
    """The rules of a linear map: `theirs`.weight is (out, in), `ours`.kernel is (in, out).

    Args:
      bias: whether it has one.
      transform: of the rows of the weight and of the bias, before the weight is transposed.
    """
    turned = TRANSPOSED if transform is SAME else chain(transform, TRANSPOSED)
    weight = rule(f"{theirs}.weight", f"{ours}.kernel", turned)
    return [weight, *([rule(f"{theirs}.bias", f"{ours}.bias", transform)] if bias else [])]


def under(rules: Iterable[Rule], theirs: str, ours: str) -> list[Rule]:
    """The rules with `theirs` before the names of tensors and `ours` before those of parameters."""
    return [
        Rule(tuple(theirs + n for n in r.theirs), tuple(ours + n for n in r.ours), r.transform)
        for r in rules
    ]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of one model.

    Attributes:
      rules: in the order of the forward pass.
      shapes: of the tensors, by name, in the same order.
      by_parameter: the rule of each parameter.
    """

    rules: tuple[Rule, ...]
    shapes: dict[str, Shape]
    by_parameter: dict[str, Rule]

    @classmethod
    def of(cls, model: Model, rules: Iterable[Rule]) -> "Table":
        """Checks the rules against the model's parameters.

        Raises:
          ValueError: if a parameter stands in no rule or in two, or a rule names none: a mistake in
            the family's table.
        """
        rules, abstract = tuple(rules), model.by_name(model.abstract)
        by_parameter = {name: r for r in rules for name in r.ours}
        named = [name for r in rules for name in r.ours]
        if sorted(named) != sorted(abstract):
            wrong = {*named} ^ {*abstract} or {n for n in named if named.count(n) > 1}
            raise ValueError(f"the table and the model differ in {sorted(wrong)[:6]}")
        shapes: dict[str, Shape] = {}
        for r in rules:
            found = _their_shapes(r.transform, tuple(abstract[name].shape for name in r.ours))
            if len(found) != len(r.theirs):
                raise ValueError(f"{r.theirs} are {len(r.theirs)} names of {len(found)} tensors")
            if twice := shapes.keys() & set(r.theirs):
                raise ValueError(f"{sorted(twice)} stand in two rules")
            shapes |= zip(r.theirs, found)
        return cls(rules, shapes, by_parameter)

    def faults(self, found: Mapping[str, Shape]) -> str:
        """What is wrong with a checkpoint whose tensors have these shapes; "" if nothing is."""
        # What a rule takes together may be cut elsewhere.
        recut = {
            n
            for r in self.rules
            if isinstance(r.transform, Chain) and isinstance(r.transform.steps[0], Recut)
            for n in r.theirs
            if all(x in found for x in r.theirs)
            and sum(found[x][0] for x in r.theirs) == sum(self.shapes[x][0] for x in r.theirs)
        }
        kinds = {
            "missing": [n for n in self.shapes if n not in found],
            "not in this architecture": [n for n in found if n not in self.shapes],
            "of another shape": [
                f"{n} {tuple(found[n])} instead of {shape}"
                for n, shape in self.shapes.items()
                if n in found and tuple(found[n])[n in recut :] != shape[n in recut :]
            ],
        }
        return "; ".join(f"{what}: {first(names)}" for what, names in kinds.items() if names)


def first(names: Sequence[str], shown: int = 4) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@functools.cache
def _their_shapes(transform: Transform, ours: tuple[Shape, ...]) -> tuple[Shape, ...]:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ours]
    theirs: Any = jax.eval_shape(transform.theirs, arrays)
    return tuple(tuple(x.shape) for x in theirs)


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)

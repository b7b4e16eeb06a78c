"""Budgets: how many layers may keep attention, or how large the model's cache may be."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from hybridlm.errors import UserError

Kept = frozenset[int]


@dataclasses.dataclass(frozen=True)
class Budget:
    """A bound on the cost of a set of kept layers.

    Attributes:
      layers: the candidates, in ascending order.
      limit: the largest cost allowed.
      fixed: cost of the layers that are equal in teacher and student.
      kept, replaced: each candidate's cost if it is the teacher's, and if it is the student's.
      text: the budget in words, for errors and reports.
    """

    layers: tuple[int, ...]
    limit: int
    fixed: int
    kept: tuple[int, ...]
    replaced: tuple[int, ...]
    text: str

    @classmethod
    def of_layers(cls, layers: Sequence[int], keep: int) -> "Budget":
        """At most `keep` of the candidates keep attention.

        Raises:
          UserError: if `keep` is negative, or there are fewer candidates.
        """
        if not 0 <= keep <= len(layers):
            raise UserError(
                f"keep must be from 0 to {len(layers)}, the number of layers, not {keep}"
            )
        ones, zeros = (1,) * len(layers), (0,) * len(layers)
        return cls(tuple(layers), keep, 0, ones, zeros, f"{keep} layers")

    @classmethod
    def of_bytes(
        cls,
        layers: Sequence[int],
        limit: int,
        teacher: Sequence[int],
        student: Sequence[int],
        length: int,
    ) -> "Budget":
        """The states of one sequence take at most `limit` bytes after `length` tokens.

        Args:
          teacher, student: bytes of every layer of the model, candidates or not.

        Raises:
          UserError: if the model with every candidate replaced takes more.
        """
        own = set(layers)
        fixed = sum(n for i, n in enumerate(student) if i not in own)
        kept, replaced = ([model[i] for i in layers] for model in (teacher, student))
        text = f"{limit:,} bytes of cache at {length:,} tokens"
        budget = cls(tuple(layers), limit, fixed, tuple(kept), tuple(replaced), text)
        if not budget.fits(()):
            raise UserError(
                f"the budget is {text}, and the model with every layer replaced takes"
                f" {budget.cost(()):,}"
            )
        return budget

    def cost(self, kept: Collection[int]) -> int:
        """The cost of a model that keeps these candidates."""
        costs = zip(self.layers, self.kept, self.replaced, strict=True)
        return self.fixed + sum(k if layer in kept else r for layer, k, r in costs)

    def fits(self, kept: Collection[int]) -> bool:
        """Whether a model that keeps these candidates is within the budget."""
        return self.cost(kept) <= self.limit

    @property
    def share(self) -> float:
        """The budget as a share of the candidates: of the cost between keeping none and all, at most 1."""
        none, full = self.cost(()), self.cost(self.layers)
        return 1.0 if full <= none else min((self.limit - none) / (full - none), 1.0)

    def cut(self, order: Iterable[int]) -> Kept:
        """Walks down an order of layers, the most important first, and keeps each one that fits."""
        kept: Kept = frozenset()
        for layer in order:
            if self.fits(kept | {layer}):
                kept |= {layer}
        return kept

"""Names for the activations inside a model, by which an analysis keeps and changes them.

A layer calls `context.hook("hook_q", q_BTHK)`, which returns its argument. Where the context has
`Hooks`, it first applies the edit of that name, and keeps the result if it was asked for. The names
and layouts are those of TransformerLens. Training has no `Hooks`: the call returns its argument and
leaves nothing in the compiled program.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

Edit = Callable[[jax.Array], jax.Array]


class Hooks:
    """Keeps and changes activations while a model is traced; made anew for each trace.

    Attributes:
      kept: the activations asked for, by full name, in the order of the forward pass. Each is what
        the model goes on with, after the edit.
      positions: the tokens after which mixers' states are kept; see `mixers.states`.
    """

    def __init__(
        self,
        names: Callable[[str], bool] = lambda name: False,
        edits: Mapping[str, Edit] | None = None,
        positions: Sequence[int] = (),
    ):
        self._names = names
        self._edits = dict(edits or {})
        self._scope = ""
        self.kept: dict[str, jax.Array] = {}
        self.positions = tuple(positions)

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        """x after the edit of `name`.

        Raises:
          ValueError: if the edit changes the shape, or if the name is used twice.
        """
        full = self._scope + name
        if full in self._edits:
            edited = jnp.asarray(self._edits[full](x))
            if edited.shape != x.shape:
                raise ValueError(
                    f"the edit of {full} returns the shape {edited.shape}: it must keep {x.shape}"
                )
            x = edited.astype(x.dtype)
        if self._names(full):
            if full in self.kept:
                raise ValueError(
                    f"two activations have the name {full}: a mixer must name each once"
                )
            self.kept[full] = x
        return x

    def asks(self, *names: str) -> bool:
        """Whether one of the activations is kept or changed."""
        return any(self._names(self._scope + n) for n in names) or self.edits(*names)

    def edits(self, *names: str) -> bool:
        """Whether one of the activations is changed."""
        return any(self._scope + name in self._edits for name in names)

    def edits_within(self) -> bool:
        """Whether an activation of this part of the model is changed."""
        return any(name.startswith(self._scope) for name in self._edits)

    def keeping_edited(self) -> "Hooks":
        """The same edits, for a part of the model that runs once more; `kept` is what they make."""
        again = copy.copy(self)
        again._names, again.kept = self._edits.__contains__, {}
        return again

    def replacing(self, values: Mapping[str, jax.Array]) -> "Hooks":
        """Hooks that keep nothing and put these in the places of the activations, by full name."""
        again = copy.copy(self)
        again._names = lambda name: False
        again._edits = {name: lambda _, value=value: value for name, value in values.items()}
        return again

    def within(self, scope: str) -> "Hooks":
        """The same hooks for a part of the model, whose names begin with `scope` and a dot."""
        part = copy.copy(self)  # shares `kept`
        part._scope = f"{self._scope}{scope}."
        return part

"""A forward pass that keeps activations, changes them, or takes gradients to them, by name.

The functions are pure: hooks live as long as one trace. Layers are unrolled, so that each has names
of its own, and the compiled program holds only what is asked for.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hybridlm.analysis.edits import Affine, Edit, for_activation
from hybridlm.errors import UserError
from hybridlm.models.hooks import Hooks
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.settings import globs

#: Names of activations: globs over names ("blocks.*.hook_resid_post", with "|" between several), a
#: sequence of globs, or a function of a name. None is all.
Names = str | Iterable[str] | Callable[[str], bool] | None
Activations = dict[str, jax.Array]


def shapes(
    model: Model,
    batch: int,
    time: int,
    positions: Sequence[int] = (),
    dtype: jnp.dtype = jnp.float32,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every activation, by name, in the order of the forward pass.

    Args:
      positions: the tokens after which states are kept; without any there are no states.
    """
    return dict(_shapes(model, dtype, batch, time, tuple(positions)))


def choose(names: Names, known: Sequence[str]) -> tuple[str, ...]:
    """The names that a filter chooses, in the order of `known`.

    Raises:
      UserError: if a glob matches no name.
    """
    if names is None:
        return tuple(known)
    if callable(names):
        return tuple(name for name in known if names(name))
    text = names if isinstance(names, str) else "|".join(names)
    return tuple(globs.select(text, known, "names"))


def forward(
    model: Model,
    params: Params,
    tokens_BT: Any,
    segment_ids_BT: Any,
    names: Sequence[str] = (),
    edits: Mapping[str, Edit] | None = None,
    positions: Sequence[int] = (),
    dtype: jnp.dtype = jnp.float32,
) -> tuple[jax.Array, Activations]:
    """(logits (B, T, V), the activations `names`), with the activations of `edits` changed."""
    program = _forward(model, dtype, frozenset(names), tuple(positions))
    logits_BTV, kept = program(params, tokens_BT, segment_ids_BT, as_pytrees(edits))
    return logits_BTV, {name: kept[name] for name in names}


def gradients(
    model: Model,
    params: Params,
    tokens_BT: Any,
    segment_ids_BT: Any,
    of: Callable[[jax.Array], jax.Array],
    names: Sequence[str],
    edits: Mapping[str, Edit] | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[jax.Array, Activations]:
    """(the scalar `of(logits)`, its gradients to the activations `names`, after their edits)."""
    program = _gradients(model, dtype, tuple(names))
    return program(params, tokens_BT, segment_ids_BT, as_pytrees(edits), as_pytree(of))


def as_pytrees(edits: Mapping[str, Edit] | None) -> dict[str, Any]:
    """Edits as an argument of a jitted function."""
    return {name: as_pytree(for_activation(name, edit)) for name, edit in (edits or {}).items()}


def as_pytree(function: Callable[..., Any]) -> Any:
    """A function as an argument of a jitted function: its code static, its arrays traced."""
    if not callable(function):
        raise UserError(
            f"an edit is a function of the activation, not a {type(function).__name__}: use patch(array)"
        )
    is_leaf = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if is_leaf else function


def check_edits(
    edits: Mapping[str, Edit] | None,
    known: Mapping[str, jax.ShapeDtypeStruct],
    tokens_shape: tuple[int, ...],
    *,
    one_end: bool = True,
) -> None:
    """Raises UserError for an edit of what is no activation, or of tokens or heads it does not have.

    Args:
      one_end: whether the rows end at the same token, so that positions may count from the end.
    """
    for name, edit in (edits or {}).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            mend = f"did you mean {near[0]!r}?" if near else "`hooks` lists the names"
            raise UserError(f"edits has {name!r}, which is no activation of this model: {mend}")
        if isinstance(edit, Affine):
            shape = known[name].shape
            for_activation(name, edit).check(name, shape, tokens_shape, one_end)


def run(
    model: Model,
    params: Params,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    hooks: Hooks,
    dtype: jnp.dtype,
) -> jax.Array:
    """Logits (B, T, V) of a pass with hooks; to be traced."""
    module = model.bind(params)
    context = SequenceContext.of(segment_ids_BT)._replace(hooks=hooks)
    return module.logits(module.hidden(tokens_BT, context, dtype=dtype))


@per_model
def _forward(model: Model, dtype: jnp.dtype, names: frozenset[str], positions: tuple[int, ...]):
    @jax.jit
    def program(params, tokens_BT, segment_ids_BT, edits):
        hooks = Hooks(names.__contains__, edits, positions)
        return run(model, params, tokens_BT, segment_ids_BT, hooks, dtype), hooks.kept

    return program


@per_model
def _gradients(model: Model, dtype: jnp.dtype, names: tuple[str, ...]):
    @jax.jit
    def program(params, tokens_BT, segment_ids_BT, edits, of):
        known = shapes(model, *tokens_BT.shape, dtype=dtype)
        zeros = {name: jnp.zeros(known[name].shape, known[name].dtype) for name in names}

        def value(deltas):
            moved = {name: _moved(edits.get(name), delta) for name, delta in deltas.items()}
            hooks = Hooks(edits={**edits, **moved})
            return of(run(model, params, tokens_BT, segment_ids_BT, hooks, dtype))

        return jax.value_and_grad(value)(zeros)

    return program


@per_model
def _shapes(model: Model, dtype: jnp.dtype, batch: int, time: int, positions: tuple[int, ...]):
    order: list[str] = []

    def trace(params, tokens_BT, segment_ids_BT):
        hooks = Hooks(lambda name: True, positions=positions)
        run(model, params, tokens_BT, segment_ids_BT, hooks, dtype)
        order.extend(hooks.kept)
        return hooks.kept

    tokens_BT = jax.ShapeDtypeStruct((batch, time), jnp.int32)
    found = jax.eval_shape(trace, model.abstract, tokens_BT, tokens_BT)
    return tuple((name, found[name]) for name in order)


def _moved(edit: Edit | None, delta: jax.Array) -> Edit:
    """The edit, and then a sum with `delta`, to which a gradient is taken."""
    return lambda x: (x if edit is None else edit(x)) + delta

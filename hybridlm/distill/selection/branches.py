"""A model that holds the teacher's and the student's mixer of each layer, and a gate that chooses.

A swap of a layer is another number in the parameters, so no swap compiles anything: the model is an
ordinary `Model`, and every evaluation and probe takes it with its compiled programs.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from hybridlm.distill.compose import check_alike
from hybridlm.distill.layers import LayerSettings, layers_of, with_layers
from hybridlm.errors import UserError
from hybridlm.models.mixers.base import LayerSpec, Mixer, SequenceContext
from hybridlm.models.mixers.parallel import ParallelConfig
from hybridlm.models.params import Model, Params
from hybridlm.runs.opened import OpenedModel
from hybridlm.settings.bounds import settings

TEACHER, STUDENT, GATE = "teacher", "student", "alpha"


@settings
class BranchesConfig(ParallelConfig):
    """Two mixers of one layer, the teacher's and the student's; made by `branches`, not by configs."""

    kind_name: ClassVar[str] = "branches"
    equation: ClassVar[str] = "y = alpha f_teacher(x) + (1 - alpha) f_student(x)"
    source: ClassVar[str] = "arXiv 2606.30562"

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Branches":
        return Branches(self, spec, rngs=rngs)


class Branches(Mixer):
    """alpha * teacher(x) + (1 - alpha) * student(x), with a scalar alpha in [0, 1] as a parameter.

    A branch of weight 0 is not computed, so it costs nothing, and what is not finite in it is not
    seen. (alpha therefore has no gradient at exactly 0 and 1.)
    """

    def __init__(self, config: BranchesConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        self.alpha = nnx.Param(jnp.ones(()), axes=())
        self.teacher = config.branches[TEACHER].build(spec, rngs=rngs)
        self.student = config.branches[STUDENT].build(spec, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        def run(mixer: Mixer) -> Callable[[], Any]:
            def apply() -> Any:
                here = context.apart()
                return mixer(x_BTD, here), here.cross_layer

            return apply

        (y_BTD, arrays), _ = self._mixed(run, lambda found: (found, ()), None)
        _hand_on(context, arrays)
        return y_BTD

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> dict[str, Any]:
        """The states of both branches before any token; only those of used branches change."""
        return {
            name: getattr(self, name).init_state(batch, max_len, dtype)
            for name in (TEACHER, STUDENT)
        }

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: dict[str, Any]
    ) -> tuple[jax.Array, dict[str, Any]]:
        def run(mixer: Mixer, own: Any) -> Callable[[], Any]:
            def apply() -> Any:
                here = context.apart()
                y_BTD, new = mixer.extend(x_BTD, here, own)
                return y_BTD, here.cross_layer, new

            return apply

        (y_BTD, arrays), states = self._mixed(run, lambda found: (found[:2], found[2]), state)
        _hand_on(context, arrays)
        return y_BTD, states

    def _mixed(
        self, run: Callable[..., Any], parts: Callable[[Any], tuple[Any, Any]], state: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The weighted sum of the branches' outputs, and their states by name.

        Args:
          run: (mixer) or (mixer, state) -> a function without arguments.
          parts: splits what that returns into (outputs, state).
        """
        alpha = self.alpha[...]
        total, states = None, {}
        for name, weight in ((TEACHER, alpha), (STUDENT, 1 - alpha)):
            mixer = getattr(self, name)
            apply = run(mixer) if state is None else run(mixer, state[name])
            shape = jax.eval_shape(apply)

            def skip(shape: Any = shape, name: str = name) -> Any:
                """Zeros, and the state as it was."""
                zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
                return zeros if state is None else (*zeros[:2], state[name])

            outputs, states[name] = parts(jax.lax.cond(weight > 0, apply, skip))
            weighted = jax.tree.map(lambda y, w=weight: y * w.astype(y.dtype), outputs)
            total = weighted if total is None else jax.tree.map(jnp.add, total, weighted)
        return total, states


@dataclasses.dataclass(frozen=True)
class BranchModel:
    """Teacher and student in one model.

    Attributes:
      teacher: the teacher as it was opened.
      model: the model with both mixers in every candidate layer.
      params: its parameters on the device; all gates are 1, the teacher's.
      layers: the candidates: layers whose mixers differ, in ascending order.
    """

    teacher: OpenedModel
    model: Model
    params: Params
    layers: tuple[int, ...]

    def with_gates(self, alpha_C: jax.Array) -> Params:
        """The parameters with these gates, one for each candidate."""
        return with_gates(self.model, self.layers, self.params, alpha_C)

    def gates(self, kept: Collection[int]) -> jax.Array:
        """(C,) float32: 1 for candidates that are kept, else 0."""
        return jnp.asarray([float(i in kept) for i in self.layers], jnp.float32)

    def with_kept(self, kept: Collection[int]) -> Params:
        """The parameters with the teacher's mixers in `kept`, the student's in other candidates."""
        return self.with_gates(self.gates(kept))

    def opened(self, kept: Collection[int]) -> OpenedModel:
        """The hybrid as evaluations take models."""
        return dataclasses.replace(self.teacher, model=self.model, params=self.with_kept(kept))


def with_gates(
    model: Model, layers: Sequence[int], params: Params, alpha_C: jax.Array, name: str = GATE
) -> Params:
    """A branch model's parameters with other gates, those of `layers`; may be traced.

    Args:
      name: of the mixers' scalar parameter that is set.
    """
    flat, place = flatten_dict(params), {i: c for c, i in enumerate(layers)}
    for path, names in flatten_dict(model.names).items():
        own = [place.get(int(n.split(".")[1])) for n in names if _is_scalar(n, name)]
        if own and None not in own:
            values = alpha_C[np.array(own)].astype(flat[path].dtype)
            flat[path] = values.reshape(flat[path].shape)
    return unflatten_dict(flat)


def branches(teacher: OpenedModel, student: OpenedModel) -> BranchModel:
    """Puts both models into one.

    Raises:
      UserError: where they differ in more than their mixers, or not at all.
    """
    check_alike(teacher.config, student.config)
    ours, theirs = (m.model.by_name(m.params) for m in (teacher, student))
    differing = _differing_layers(teacher, student, ours, theirs)
    layers = []
    for i, (a, b) in enumerate(zip(layers_of(teacher.config), layers_of(student.config))):
        if i in differing:
            mixer = BranchesConfig(branches={TEACHER: a.mixer, STUDENT: b.mixer})
            a = LayerSettings(f"{a.name}_or_{b.name}", mixer, a.feedforward, a.block)
        layers.append(a)
    model = Model.of(with_layers(teacher.config, layers))
    named = {}
    for name, shape in model.by_name(model.abstract).items():
        _, _, rest = name.partition(".mixer.")
        branch, _, own = rest.partition(".")
        layer = int(name.split(".")[1]) if rest else -1
        if layer not in differing:
            named[name] = ours[name]
        elif rest == GATE:
            named[name] = np.ones(shape.shape, shape.dtype)
        else:
            source = {TEACHER: ours, STUDENT: theirs}[branch]
            named[name] = source[f"layers.{layer}.mixer.{own}"]
    params = jax.tree.map(jnp.asarray, model.from_names(named))
    return BranchModel(teacher, model, params, tuple(sorted(differing)))


def _differing_layers(
    teacher: OpenedModel, student: OpenedModel, ours: dict[str, Any], theirs: dict[str, Any]
) -> set[int]:
    """The layers whose mixers differ in settings or parameters.

    Raises:
      UserError: where another parameter differs, or a layer's mixer is absent in one model only.
    """
    found = set()
    pairs = zip(layers_of(teacher.config), layers_of(student.config))
    for i, (a, b) in enumerate(pairs):
        if (a.mixer is None) != (b.mixer is None):
            raise UserError(f"layer {i} has a mixer in one model only: selection needs two")
        if a.mixer != b.mixer:
            found.add(i)
    for name in ours.keys() | theirs.keys():
        layer = int(name.split(".")[1]) if ".mixer." in name else None
        if layer in found:
            continue
        same = name in ours and name in theirs and np.array_equal(ours[name], theirs[name])
        if layer is None and not same:
            raise UserError(
                f"the student's {name} is not the teacher's: selection takes a student of which only"
                " mixers were trained"
            )
        if not same:
            found.add(layer)
    if not found:
        raise UserError("teacher and student have the same mixers: there is nothing to select")
    return found


def _is_scalar(name: str, scalar: str) -> bool:
    return name.startswith("layers.") and name.endswith(f".mixer.{scalar}")


def _hand_on(context: SequenceContext, arrays: dict[str, jax.Array] | None) -> None:
    if arrays is not None:
        context.cross_layer.update(arrays)

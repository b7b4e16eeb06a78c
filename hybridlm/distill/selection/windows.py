"""Which layers of a model of Native Hybrid Attention see all tokens: a search over windows.

A model with all windows wide is the search's teacher, the same weights with narrow ones its student.
Both are one model whose windows are parameters, so the weights are held once and no choice of windows
compiles anything.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.distill.compose import check_alike
from hybridlm.distill.layers import layers_of, with_layers
from hybridlm.distill.selection.branches import BranchModel, with_gates
from hybridlm.errors import UserError
from hybridlm.models.mixers.nha import NHAConfig
from hybridlm.models.mixers.traced_nha import ALL_TOKENS, SPAN, TracedNHAConfig
from hybridlm.models.params import Model, Params
from hybridlm.runs.opened import OpenedModel


@dataclasses.dataclass(frozen=True)
class WindowModel(BranchModel):
    """A `BranchModel` whose gates choose windows: 1 is the teacher's, 0 the student's.

    Attributes:
      wide, narrow: of each candidate, the window in tokens.
    """

    wide: tuple[int, ...] = ()
    narrow: tuple[int, ...] = ()

    def with_gates(self, alpha_C: jax.Array) -> Params:
        """The parameters with these windows; a gate above a half takes the wide one."""
        wide_C, narrow_C = (jnp.asarray(x, jnp.float32) for x in (self.wide, self.narrow))
        spans_C = jnp.where(alpha_C > 0.5, wide_C, narrow_C)
        return with_gates(self.model, self.layers, self.params, spans_C, SPAN)


def windows(teacher: OpenedModel, student: OpenedModel) -> WindowModel:
    """Puts two models of the same weights, with other windows, into one.

    Raises:
      UserError: where they differ in more than windows of Native Hybrid Attention, or not at all.
    """
    check_alike(teacher.config, student.config)
    layers, found = [], {}
    pairs = enumerate(zip(layers_of(teacher.config), layers_of(student.config)))
    for index, (ours, theirs) in pairs:
        if ours.mixer != theirs.mixer:
            spans = _spans(index, ours.mixer, theirs.mixer)
            own = {f.name: getattr(ours.mixer, f.name) for f in dataclasses.fields(ours.mixer)}
            ours = ours._replace(name="any_window", mixer=TracedNHAConfig(**own | {"window": None}))
            found[index] = spans
        layers.append(ours)
    if not found:
        raise UserError("both models have the same windows: there is nothing to choose")
    named = _shared(teacher, student)
    model = Model.of(with_layers(teacher.config, layers))
    for name, shape in model.by_name(model.abstract).items():
        if name not in named:
            named[name] = np.full(shape.shape, ALL_TOKENS, shape.dtype)
    params = jax.tree.map(jnp.asarray, model.from_names(named))
    wide, narrow = zip(*found.values())
    return WindowModel(teacher, model, params, tuple(found), wide, narrow)


def _spans(index: int, ours: object, theirs: object) -> tuple[int, int]:
    """(the teacher's window, the student's).

    Raises:
      UserError: where the mixers differ in anything else.
    """
    for mixer in (ours, theirs):
        if not isinstance(mixer, NHAConfig):
            raise UserError(
                f"layer {index} has {getattr(mixer, 'kind_name', 'no mixer')} and no Native Hybrid"
                " Attention: only windows of that are chosen here"
            )
    if dataclasses.replace(ours, window=None) != dataclasses.replace(theirs, window=None):
        raise UserError(f"layer {index} differs in more than its window")
    spans = (ALL_TOKENS if x.window is None else x.window for x in (ours, theirs))
    return tuple(spans)


def _shared(teacher: OpenedModel, student: OpenedModel) -> dict[str, np.ndarray]:
    """The parameters by name, which both models share.

    Raises:
      UserError: naming the first that differs.
    """
    ours, theirs = (m.model.by_name(m.params) for m in (teacher, student))
    for name, value in ours.items():
        if not np.array_equal(value, theirs[name]):
            raise UserError(f"{name} differs: models of other windows must have the same weights")
    return dict(ours)

"""What a run takes from the run or model folder that its `init` names.

`make_plan` compares names and shapes and uses no device, so that a wrong `init` is refused before
anything is compiled; `hybridlm.train.init_from` carries the plan out. Parameters are matched by
their names (`Model.names`), which depend neither on how layers are stacked nor on what mixers are
called.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from hybridlm.data import Tokenizer
from hybridlm.errors import ConfigError, RunError
from hybridlm.models import stack
from hybridlm.models.params import Model
from hybridlm.runs.source import Source, open_source
from hybridlm.settings import globs
from hybridlm.train.optimizer import optimizer_of
from hybridlm.train.settings import Config, InitConfig

Path = tuple[str, ...]
Shape = tuple[int, ...]
Names = dict[Path, tuple[str, ...]]  # of the parameters in an array, one for each layer


class Place(NamedTuple):
    """An array of the source, by its path in a train state, and its row if layers share it."""

    path: Path
    row: int | None = None


class Growth(NamedTuple):
    """A larger vocabulary: along `axis` of one layer's parameter, the first `kept` are old."""

    axis: int
    kept: int


class Copy(NamedTuple):
    """What fills an array of the new run.

    Attributes:
      places: of each row, if layers share the array; else of the array. None starts fresh.
      stacked: whether layers share the array.
      growth: where its vocabulary is larger than the source's.
    """

    places: tuple[Place | None, ...]
    stacked: bool = False
    growth: Growth | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a new run takes from its source.

    Attributes:
      settings: the config's `init`.
      source: the run or model folder.
      copies: by the path in the train state; arrays without one are as in any new run.
    """

    settings: InitConfig
    source: Source
    copies: dict[Path, Copy]

    def describe(self) -> str:
        """One line for the start of a run."""
        params = [copy for path, copy in self.copies.items() if path[0] == "params"]
        places = [place for copy in params for place in copy.places]
        taken = len(places) - places.count(None)
        notes = [f"{taken} of {len(places)} parameter arrays of layers are taken"]
        notes += ["the vocabulary grows"] * any(copy.growth for copy in params)
        notes += ["with the optimizer's state"] * self.settings.optimizer
        at = "" if self.source.step is None else f" at step {self.source.step}"
        return f"begins from {self.source.path}{at}: {', '.join(notes)}"


def make_plan(config: Config, tokenizer: Tokenizer) -> Plan:
    """Compares a config with the source that its `init` names; uses no device.

    Args:
      config: with its vocabulary size filled in, and with `init`.
      tokenizer: of `config.data`.

    Raises:
      UserError: if there is no such source; if it has another tokenizer; if parameters are missing,
        extra or of another shape; if the optimizer's state does not fit.
    """
    init = config.init
    source = open_source(init.path, init.step)
    if init.keep_step and source.is_run and source.step >= config.train.steps:
        raise ConfigError(
            f"train.steps is {config.train.steps}, and with init.keep_step the run begins at step"
            f" {source.step} of {source.path}: set it above {source.step}"
        )
    model = Model.of(config.model)
    wanted, there = _wanted(model), _There.of(source)
    fresh = set(globs.select(init.fresh, {**wanted, **there.shapes}, "init.fresh"))
    known = _known_ids(source, tokenizer, wanted, fresh)
    _check_names(source, wanted, there.shapes, fresh)
    _check_fresh(config, [name for name in wanted if name in fresh])
    growth = {}
    for name, (shape, axes) in wanted.items():
        if name not in fresh and "vocab" in axes:
            axis = axes.index("vocab")
            kept = there.shapes[name][axis] if known is None else known
            growth[name] = Growth(axis, kept) if kept < shape[axis] else None

    def copy(names: Sequence[str], path: Path, places: Mapping[str, Place]) -> Copy:
        chosen = tuple(None if name in fresh else places.get(name) for name in names)
        return Copy(chosen, path[0] == stack.UNIT, growth.get(names[0]))

    names_of = flatten_dict(model.names)
    params = there.places(("params",), trained=False)
    copies = {("params", *path): copy(names, path, params) for path, names in names_of.items()}
    trainable, optimizer = optimizer_of(config.optimizer, model)
    trained = {
        path: tuple(names[i] for i in trainable.rows.get(path, range(len(names))))
        for path, names in names_of.items()
        if path not in trainable.frozen
    }
    if config.train.ema_decay is not None:
        averages = params | (there.places(("ema",), trained=True) if init.keep_step else {})
        copies |= {("ema", *path): copy(names, path, averages) for path, names in trained.items()}
    if init.optimizer:
        _check_optimizer(config, source)
        part = trainable.take(model.abstract)
        shapes = {path: x.shape for path, x in flatten_dict(part).items()}
        abstract = {"opt_state": jax.eval_shape(optimizer.init, part)}
        copies |= _optimizer_copies(abstract, trained, shapes, there, copy)
    if init.keep_step:
        counted = {"step": source.arrays["step"], "guard": source.arrays["guard"]}
        copies |= {path: Copy((Place(path),)) for path in leaves(counted)}
    return Plan(init, source, copies)


# --- what must fit ------------------------------------------------------------------------------


class _Wanted(NamedTuple):
    """The shape of a parameter of the new model, and the logical names of its dimensions."""

    shape: Shape
    axes: tuple[str, ...]


def _wanted(model: Model) -> dict[str, _Wanted]:
    axes, shapes = flatten_dict(model.axes), flatten_dict(model.abstract)
    wanted = {}
    for path, names in flatten_dict(model.names).items():
        skip = 1 if path[0] == stack.UNIT else 0
        one = _Wanted(shapes[path].shape[skip:], axes[path][skip:])
        wanted |= dict.fromkeys(names, one)
    return {name: wanted[name] for name in model.by_name(model.abstract)}  # bottom to top


@dataclasses.dataclass(frozen=True)
class _There:
    """The arrays of a source.

    Attributes:
      arrays: the shape of each array, by its path in the train state.
      names: of the parameters, by the array's path in the parameters.
      trained: the same, without parameters that the source froze.
      shapes: of the parameters, by name.
    """

    arrays: dict[Path, Shape]
    names: Names
    trained: Names
    shapes: dict[str, Shape]

    @classmethod
    def of(cls, source: Source) -> "_There":
        layout = source.model.layout
        arrays = {path: tuple(x.shape) for path, x in leaves(source.arrays).items()}
        params = {path[1:]: shape for path, shape in arrays.items() if path[0] == "params"}
        try:
            names = {path: stack.names(path, layout) for path in params}
        except (LookupError, ValueError):
            raise RunError(f"{source.folder} holds parameters of another config") from None
        shapes = {
            name: params[path][1 if path[0] == stack.UNIT else 0 :]
            for path, of in names.items()
            for name in of
        }
        freeze = (source.settings.get("optimizer") or {}).get("freeze", "")
        frozen = set(globs.select(freeze, shapes, "optimizer.freeze"))
        kept = {path: tuple(n for n in of if n not in frozen) for path, of in names.items()}
        return cls(arrays, names, {path: of for path, of in kept.items() if of}, shapes)

    def places(self, before: Path, *, trained: bool) -> dict[str, Place]:
        """Where the arrays of a tree like the (trained) parameters are, by parameter name.

        Args:
          before: the path of the tree in the train state.
        """
        return {
            name: Place((*before, *path), row if path[0] == stack.UNIT else None)
            for path, of in (self.trained if trained else self.names).items()
            if (*before, *path) in self.arrays
            for row, name in enumerate(of)
        }


def _known_ids(
    source: Source, tokenizer: Tokenizer, wanted: Mapping[str, _Wanted], fresh: set[str]
) -> int | None:
    """How many ids mean the same in both; None if the tokenizers are the same.

    Raises:
      ConfigError: if the source's tokenizer is not the beginning of the new run's.
    """
    of_vocabulary = [n for n, parameter in wanted.items() if "vocab" in parameter.axes]
    if fresh.issuperset(of_vocabulary) or source.tokenizer_fingerprint() == tokenizer.fingerprint:
        return None
    old = source.tokenizer()
    pieces = old.pieces()
    same = old.kind == tokenizer.kind and tokenizer.pieces()[: len(pieces)] == pieces
    unnamed = {old.bos_id: tokenizer.bos_id, old.eos_id: tokenizer.eos_id}
    if same and all(pieces[i] or i == j for i, j in unnamed.items()):
        return old.vocab_size
    raise ConfigError(
        f"init.path {source.path} was trained with another tokenizer ({_tokenizer(old)}) than"
        f" data.tokenizer ({_tokenizer(tokenizer)}), and the ids of one are not the first ids of the"
        f' other: use its tokenizer, or set init.fresh="{"|".join(_common(of_vocabulary, wanted))}"'
    )


def _check_names(
    source: Source,
    wanted: Mapping[str, _Wanted],
    found: Mapping[str, Shape],
    fresh: set[str],
) -> None:
    """Checks that each parameter is in the source with its shape, or starts fresh."""
    faults: dict[str, dict[str, str]] = {"missing there": {}, "not in this model": {}}
    shapes = faults["of another shape"] = {}
    for name, (shape, axes) in wanted.items():
        if name in fresh:
            continue
        if name not in found:
            faults["missing there"][name] = name
        elif not _fits(found[name], shape, axes):
            shapes[name] = f"{name} {found[name]} instead of {shape}"
    faults["not in this model"] = {n: n for n in found if n not in wanted and n not in fresh}
    listed = [f"{what}: {_first(names.values())}" for what, names in faults.items() if names]
    if not listed:
        return
    names = [name for of_kind in faults.values() for name in of_kind]
    starts = _common(names, {**found, **wanted})
    glob = "|".join(starts) if len(starts) <= 8 else f"{starts[0]}|{starts[1]}|..."
    raise ConfigError(
        f"init.path {source.path} does not hold the parameters of this model ({'; '.join(listed)}):"
        f' init.fresh="{glob}" would start these fresh, or leave them out'
    )


def _check_fresh(config: Config, fresh: Sequence[str]) -> None:
    """Checks that blockwise distillation trains all that starts fresh: it keeps the rest as it is.

    Args:
      config: with the freeze of `hybridlm.train.teacher.resolve`.
    """
    if config.teacher is None or config.teacher.objective != "blockwise":
        return
    frozen = set(globs.select(config.optimizer.freeze, _wanted(Model.of(config.model)), "freeze"))
    drawn = [name for name in fresh if name in frozen]
    if drawn:
        raise ConfigError(
            f"init.fresh is {config.init.fresh!r}, and teacher.objective 'blockwise' trains the new"
            f" mixers alone, so {_first(drawn)} would stay as drawn: name parameters of the new mixers"
            " only, e.g. 'layers.*.mixer.decay'"
        )


def _fits(found: Shape, wanted: Shape, axes: Sequence[str]) -> bool:
    """Whether the shapes are the same, or differ in a larger vocabulary only."""
    return len(found) == len(wanted) and all(
        old == new or (axis == "vocab" and old < new) for old, new, axis in zip(found, wanted, axes)
    )


def _check_optimizer(config: Config, source: Source) -> None:
    """Checks that the source has the state of the same optimizer."""
    if not source.is_run:
        raise ConfigError(
            f"init.optimizer is True, and {source.path} is a model folder, which holds no optimizer"
            " state: name a run, or leave it False"
        )
    name = (source.settings.get("optimizer") or {}).get("name", config.optimizer.name)
    if name != config.optimizer.name:
        raise ConfigError(
            f"init.optimizer is True, and {source.path} was trained with {name}, not with"
            f" {config.optimizer.name}: use its optimizer.name, or leave it False"
        )


def _optimizer_copies(
    abstract: Any,
    trained: Names,
    shapes: Mapping[Path, Shape],
    there: _There,
    copy: Callable[[Sequence[str], Path, Mapping[str, Place]], Copy],
) -> dict[Path, Copy]:
    """The copies of an optimizer's state.

    Args:
      abstract: {"opt_state": its arrays} of the new run.
      trained: the names of the trained parameters, by array.
      shapes: of the arrays of the trained parameters.
      copy: (names, path of the parameters' array, places) -> what fills an array like it.

    Raises:
      ConfigError: if the source does not have the state of a parameter that it trained.
    """
    copies, faults = {}, []
    has_state = {name for names in there.trained.values() for name in names}
    for path, x in leaves(abstract).items():
        of = next((path[i:] for i in range(len(path)) if path[i:] in trained), None)
        if of is not None and tuple(x.shape) == shapes[of]:
            places = there.places(path[: -len(of)], trained=True)
            copies[path] = copy(trained[of], of, places)
            needed = copy(trained[of], of, dict.fromkeys(has_state, Place(())))
            fits = [p is None for p in copies[path].places] == [p is None for p in needed.places]
        else:  # a count, or statistics over rows or columns, which belong to a whole array
            copies[path] = Copy((Place(path),))
            fits = there.arrays.get(path) == tuple(x.shape)
            if of is not None:
                whole = copy(trained[of], of, dict.fromkeys(has_state, Place(())))
                if not any(whole.places):
                    copies.pop(path)
                    continue
                fits &= there.trained.get(of) == trained[of]
                fits &= all(whole.places) and whole.growth is None
        if not fits:
            faults.append(".".join(path))
    if faults:
        raise ConfigError(
            "init.optimizer is True, and the optimizer's state there does not fit this run (missing,"
            f" of another shape, or of layers stacked otherwise: {_first(faults)}): leave it False"
        )
    return copies


def leaves(tree: Any) -> dict[Path, Any]:
    """The leaves of a tree by the names on their path."""
    return {path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_names(path: Sequence[Any]) -> Path:
    """A path of jax.tree_util as names, which are those of the same array in a checkpoint."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


# --- words --------------------------------------------------------------------------------------


def _tokenizer(tokenizer: Tokenizer) -> str:
    return tokenizer.kind if tokenizer.path is None else f"{tokenizer.kind} {tokenizer.path}"


def _first(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if texts[4:] else "")


def _common(names: Sequence[str], known: Iterable[str]) -> list[str]:
    """The shortest beginnings of names, up to a dot, that none of the other known names has."""
    chosen, others = dict[str, None](), set(known) - set(names)
    for name in names:
        parts = name.split(".")
        starts = [".".join(parts[: i + 1]) for i in range(len(parts))]
        alone = (s for s in starts if not any(f"{o}.".startswith(f"{s}.") for o in others))
        chosen[next(alone)] = None
    return list(chosen)

"""Stage 0, transfer: a student with the teacher's parameters and other mixers in chosen layers.

Queries, keys, values and outputs start as the teacher's where heads and sizes fit. Key/value heads that
query heads share stay shared where the new mixer can share them, and are copied for each query head
otherwise (HALO, arXiv 2601.22156, sec. 3). What the teacher has no counterpart of starts as in a new
model: decays, write strengths, output gates and norms. A factor on the values is multiplied into their
projection, and norms of 1 plus a scale become norms of that sum. Slots' gates start as the key projection (NHA,
arXiv 2510.07019, the authors' code), short convolutions and shifts by a token as the identity. All other
parameters are the teacher's.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from hybridlm.distill import kinds
from hybridlm.distill.kinds import Part
from hybridlm.distill.layers import LayerSettings, layers_of, with_layers
from hybridlm.errors import UserError
from hybridlm.models.mixers import LayerSpec, MixerConfig, read_mixer
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.progress import doing
from hybridlm.runs.opened import OpenedModel

Arrays = dict[str, np.ndarray]  # the parameters of a mixer, by path with dots
#: Settings of attention, without parameters of their own, that change its outputs.
_OF_OUTPUTS = ("window", "chunk", "temperature", "soft_cap", "scale", "v_norm")
_PLAIN = AttentionConfig(heads=1)
#: What attention's projections are called in other mixers.
_HOMES = {
    "q": ("q", "shared", "query", "r"),
    "k": ("k", "shared", "key"),
    "v": ("v", "value", "input"),
}


@dataclasses.dataclass(frozen=True)
class Transferred:
    """A student, and where the parameters of its new mixers come from.

    Attributes:
      student: with the teacher's other parameters.
      layers: the layers that have another mixer than the teacher's.
      copied: names of parameters that are the teacher's, or copies of its heads.
      fresh: names of parameters that the teacher has no counterpart of, each with the reason.
      dropped: names of the teacher's parameters that the student has no place for.
      unlike: settings of the teacher's attention, without parameters, that are not those of the new
        mixer; by name as "layers.N.mixer.SETTING", each with its value.
    """

    student: OpenedModel
    layers: tuple[int, ...]
    copied: tuple[str, ...]
    fresh: dict[str, str]
    dropped: tuple[str, ...]
    unlike: dict[str, str]

    def describe(self) -> list[str]:
        """Lines for the user, with layers that are alike in one."""
        lines = [
            f"{_numbers(self.layers)}: {self.student.config.layer_mixers()[i][1].mechanism}"
            for i in self.layers[:1]
        ]
        for title, names in (
            ("copied", self.copied),
            ("starts fresh", self.fresh),
            ("not taken over", self.dropped),
            ("the attention's setting has no counterpart", self.unlike),
        ):
            for name, layers in _by_rest(names).items():
                reasons = names if isinstance(names, dict) else {}
                reason = f" ({reasons[_first(name, layers)]})" if reasons else ""
                lines.append(f"  {title}: {name} in {_numbers(layers)}{reason}")
        return lines


def transfer(
    teacher: OpenedModel,
    mixer: Mapping[str, Any],
    layers: Collection[int] | None = None,
    seed: int = 0,
    copy: bool = True,
) -> Transferred:
    """Gives layers of a transformer another mixer.

    Args:
      mixer: settings of the new mixer; `kind`, and those that are not to follow from the teacher's
        attention (see `hybridlm.distill.kinds`).
      layers: numbers of the layers, from 0 at the bottom; None is all that have softmax attention.
      seed: of the parameters that start fresh.
      copy: False starts all parameters of the new mixers fresh, for comparison.

    Raises:
      UserError: where a layer has no softmax attention, or the mixer does not fit the model.
    """
    with doing("giving the layers their new mixer"):
        return _transfer(teacher, mixer, layers, seed, copy)


def _transfer(
    teacher: OpenedModel,
    mixer: Mapping[str, Any],
    layers: Collection[int] | None,
    seed: int,
    copy: bool,
) -> Transferred:
    config = student_config(teacher.config, mixer, layers)
    replaced = _chosen(teacher.config, layers)
    model = Model.of(config)
    named = dict(teacher.model.by_name(teacher.params))
    copied, fresh, dropped, unlike = [], {}, [], {}
    olds, news = layers_of(teacher.config), layers_of(config)
    for index in replaced:
        start = f"layers.{index}.mixer."
        old = {n.removeprefix(start): named.pop(n) for n in list(named) if n.startswith(start)}
        spec = LayerSpec(
            config.width, config.norm_eps, (2 * config.depth) ** -0.5, index, config.depth
        )
        made = initialised(olds[index].mixer, old if copy else {}, news[index].mixer, spec, seed)
        named |= {start + name: value for name, value in made.arrays.items()}
        copied += [start + name for name in made.arrays if name not in made.fresh]
        fresh |= {start + name: reason for name, reason in made.fresh.items()}
        dropped += [start + name for name in (made.dropped if copy else old)]
        lost = _unlike(olds[index].mixer, news[index].mixer, mixer)
        unlike |= {start + name: value for name, value in lost.items()}
    settings = {k: v for k, v in teacher.settings.items() if k != "architecture"}
    student = dataclasses.replace(
        teacher, model=model, params=model.from_names(named), settings=settings, averaged=()
    )
    return Transferred(student, replaced, tuple(copied), fresh, tuple(dropped), unlike)


def student_config(
    teacher: ModelConfig, mixer: Mapping[str, Any], layers: Collection[int] | None = None
) -> ModelConfig:
    """The settings of `transfer`'s student; its layers are stacked so that the teacher's can be, too.

    Raises:
      UserError: as `transfer`.
    """
    given = dict(mixer)
    read_kind = given.get("kind")
    if read_kind not in kinds.KINDS:
        raise UserError(
            f"mixer.kind is {read_kind!r}, which cannot replace attention: it may be one of"
            f" {', '.join(kinds.KINDS)}"
        )
    replaced, old, new = set(_chosen(teacher, layers)), layers_of(teacher), []
    for index, layer in enumerate(old):
        if index not in replaced:
            new.append(layer)
            continue
        settings = kinds.new_mixer(given, layer.mixer, teacher.width)
        made = read_mixer(settings, f"mixer of layer {index}")
        name = layer.name if made == layer.mixer else given["kind"]
        new.append(LayerSettings(name, made, layer.feedforward, layer.block))
    return with_layers(teacher, new, beside=old)


class Initialised(NamedTuple):
    """The parameters of a new mixer, those that are fresh with the reason, and what was dropped."""

    arrays: Arrays
    fresh: dict[str, str]
    dropped: list[str]


def initialised(
    attention: AttentionConfig, old: Arrays, mixer: MixerConfig, spec: LayerSpec, seed: int
) -> Initialised:
    """The parameters of `mixer` in the place of attention with the parameters `old`."""
    key = jax.random.fold_in(jax.random.key(seed), spec.index)
    module = mixer.build(spec, rngs=nnx.Rngs(key))
    own = flatten_dict(nnx.to_pure_dict(nnx.state(module)), sep=".")
    arrays = {name: np.array(x, np.float32) for name, x in own.items()}
    if not old or isinstance(mixer, AttentionConfig):
        taken = {n: x for n, x in old.items() if n in arrays}
    else:
        taken = _projected(attention, old, mixer, arrays, spec.width)
    taken |= _norms(attention, old, mixer, arrays)
    taken = {name: x for name, x in taken.items() if arrays[name].shape == np.shape(x)}
    fresh = {}
    for name in arrays:
        if name in taken:
            arrays[name] = np.asarray(taken[name], np.float32)
        elif _is_identity(name, mixer):
            arrays[name] = np.zeros_like(arrays[name])
            if name.endswith("kernel"):
                arrays[name][0] = 1
            fresh[name] = "identity"
        else:
            fresh[name] = _why_fresh(name, attention, mixer, spec.width, old)
    used = _used(taken, old, isinstance(mixer, AttentionConfig))
    return Initialised(arrays, fresh, [name for name in old if name not in used])


def _projected(
    attention: AttentionConfig, old: Arrays, mixer: MixerConfig, arrays: Arrays, width: int
) -> Arrays:
    """What a mixer of another kind takes over, by its own names."""
    taken: Arrays = {}
    for path, parts in kinds.parts_of(mixer, width).items():
        for leaf in ("kernel", "bias"):
            if f"{path}.{leaf}" not in arrays:
                continue
            found = [_expanded(old, attention, part, leaf, width) for part in parts]
            if all(x is not None for x in found):
                axis = 0 if parts[0].role == "out" and leaf == "kernel" else -1
                taken[f"{path}.{leaf}"] = np.concatenate(found, axis)
    # A layer that attends to the keys of a layer below has no projection of them.
    if kinds.KINDS[mixer.kind_name].slot_gate and "k.kernel" in old:
        gate = _slot_gate(old["k.kernel"], attention.kv_heads, mixer.kv_heads, mixer.slots)
        if gate is not None:
            taken["gate.kernel"] = gate
    return taken


def _norms(attention: AttentionConfig, old: Arrays, mixer: MixerConfig, arrays: Arrays) -> Arrays:
    """The scales of queries' and keys' norms, in the form that the new mixer's norms have."""
    offsets = [getattr(m, "qk_norm", False) == "unit_offset" for m in (attention, mixer)]
    return {
        name: np.asarray(old[name]) + np.float32(offsets[0] - offsets[1])
        for name in ("q_norm.scale", "k_norm.scale")
        if name in old and name in arrays
    }


def _expanded(
    old: Arrays, attention: AttentionConfig, part: Part, leaf: str, width: int
) -> np.ndarray | None:
    """Attention's projection for the heads of `part`; None where numbers or sizes do not fit.

    Values are times `value_scale`, which only attention has as a setting.
    """
    name = _source(part, leaf, attention)
    is_value = part.role in ("v", "out")
    size = attention.value_size(width) if is_value else attention.head_size(width)
    if name not in old or part.size != size:
        return None
    array = np.asarray(old[name])
    if part.role == "v" and attention.value_scale != 1.0:
        array = array * np.float32(attention.value_scale)
    if part.role == "out":
        return array if leaf == "bias" or part.heads == attention.heads else None
    heads = attention.heads if part.role == "q" else attention.kv_heads
    if part.heads % heads:
        return None
    by_head = array.reshape(*array.shape[:-1], heads, size)
    each = part.heads // heads * part.times
    return np.repeat(by_head, each, axis=-2).reshape(*array.shape[:-1], -1)


def _slot_gate(k_kernel: np.ndarray, heads: int, kv_heads: int, slots: int) -> np.ndarray | None:
    """The key projection as the gate of `slots` slots a head: its first columns, or all repeated."""
    if kv_heads != heads:
        return None
    by_head = np.asarray(k_kernel).reshape(k_kernel.shape[0], heads, -1)
    columns = np.arange(slots) % by_head.shape[-1]
    return by_head[..., columns].reshape(k_kernel.shape[0], -1)


def _unlike(
    attention: AttentionConfig, mixer: MixerConfig, given: Mapping[str, Any]
) -> dict[str, str]:
    """Settings of attention that change its outputs and are not the new mixer's; by name, the values.

    Args:
      given: settings of the mixer that were asked for; those may differ.
    """
    found = {}
    for name in _OF_OUTPUTS:
        value, default = getattr(attention, name), getattr(_PLAIN, name)
        if value != default and name not in given and getattr(mixer, name, default) != value:
            found[name] = "on" if value is True else str(value)
    if attention.rope is not None and "rope" not in given and getattr(mixer, "rope", None) is None:
        found["rope"] = "on"
    return found


def _is_identity(name: str, mixer: MixerConfig) -> bool:
    paths = kinds.KINDS[mixer.kind_name].identity
    return name in paths or name.rpartition(".")[0] in paths


def _source(part: Part, leaf: str, attention: AttentionConfig) -> str:
    """The name of attention's array that `part` takes over."""
    role = "k" if part.role == "v" and attention.values == "keys" else part.role
    return f"{role}.{leaf}"


def _why_fresh(
    name: str, attention: AttentionConfig, mixer: MixerConfig, width: int, old: Arrays
) -> str:
    path, _, leaf = name.rpartition(".")
    parts = kinds.parts_of(mixer, width).get(path, ())
    if name in old or (parts and _source(parts[0], leaf, attention) in old):
        return "the teacher's heads have another number or size"
    return "no counterpart"


def _used(taken: Arrays, old: Arrays, same_kind: bool) -> set[str]:
    """The teacher's parameters that are taken over."""
    if same_kind:
        return set(taken)
    found = set()
    for name in old:
        path, _, leaf = name.rpartition(".")
        if any(f"{home}.{leaf}" in taken for home in _HOMES.get(path, (path,))):
            found.add(name)
    return found


def _chosen(config: ModelConfig, layers: Collection[int] | None) -> tuple[int, ...]:
    """The layers to replace, bottom to top.

    Raises:
      UserError: where there is no such layer, or it has no softmax attention.
    """
    mixers = [layer.mixer for layer in layers_of(config)]
    attending = [i for i, mixer in enumerate(mixers) if isinstance(mixer, AttentionConfig)]
    if not attending:
        raise UserError("the teacher has no layer with softmax attention (kind='attention')")
    if layers is None:
        return tuple(attending)
    for index in layers:
        if not 0 <= index < config.depth:
            raise UserError(f"layers has {index}: the teacher's are 0 to {config.depth - 1}")
        if index not in attending:
            kind = mixers[index].kind_name if mixers[index] is not None else "no mixer"
            raise UserError(
                f"layers has {index}, which has {kind} and no softmax attention to replace"
            )
    if not layers:
        raise UserError("layers names no layer to replace")
    return tuple(sorted(set(layers)))


def read_layers(text: str, depth: int) -> tuple[int, ...] | None:
    """Numbers of layers from "0-3,7", or None from "all".

    Args:
      depth: layers of the model.

    Raises:
      UserError: if the text is neither, or names a layer that the model does not have.
    """
    if text == "all":
        return None
    found: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UserError(f"layers is {text!r}: write 'all', or numbers such as '0-3,7'")
        if last >= depth:  # before the numbers are listed, which may be very many
            raise UserError(f"layers has {last}: the teacher's are 0 to {depth - 1}")
        found += range(first, last + 1)
    return tuple(found)


def _by_rest(names: Iterable[str]) -> dict[str, list[int]]:
    """The layers of each name without its layer."""
    found: dict[str, list[int]] = {}
    for name in names:
        _, index, rest = name.split(".", 2)
        found.setdefault(rest, []).append(int(index))
    return found


def _first(rest: str, layers: list[int]) -> str:
    return f"layers.{layers[0]}.{rest}"


def _numbers(layers: Iterable[int]) -> str:
    """ "layers 0-3, 7" of 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in layers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"layer{'s' if len(runs) > 1 or runs[0][0] != runs[0][1] else ''} {shown}"

"""The settings of a model as a list of its layers, and back: models that differ in single layers."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from hybridlm.convert.layout import fold, terms
from hybridlm.errors import UserError
from hybridlm.models.joining import BlockConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.pattern import NONE, Layout, expand
from hybridlm.models.settings import ModelConfig
from hybridlm.settings.reader import Invalid


class LayerSettings(NamedTuple):
    """One layer.

    Attributes:
      name: what its mixer is called; "none" for a layer without one.
      mixer: its settings; None for a layer without one.
      feedforward: the name of its feed-forward in the model, as the pattern writes it, or None.
      block: how its halves join the residual stream, if not as the model says.
    """

    name: str
    mixer: MixerConfig | None
    feedforward: str | None
    block: BlockConfig | None


def layers_of(config: ModelConfig) -> list[LayerSettings]:
    """The layers of a model, bottom to top."""
    return [
        LayerSettings(
            layer.mixer,
            config.mixers.get(layer.mixer),
            layer.feedforward,
            config.blocks.get(layer.mixer),
        )
        for layer in config.layout.layers
    ]


def with_layers(
    config: ModelConfig,
    layers: Sequence[LayerSettings],
    beside: Sequence[LayerSettings] | None = None,
) -> ModelConfig:
    """A config like `config` with other layers of the same depth.

    Mixers of one name with different settings get a number. The pattern has the fewest different
    layers, so that the compiled program is small.

    Args:
      beside: layers of another model; the two stacks are then folded together, so that layers which
        share an array in the new model have equal settings in the other one, too.

    Raises:
      UserError: where the layers do not go together, such as one that reads the keys of a layer that
        has none any more.
    """
    names, mixers, blocks = _named(layers)
    labels = _labels(names, layers)
    pairs = labels
    if beside is not None:
        others = _named(beside)[0]
        kinds: dict[tuple[str, str], str] = {}
        pairs = [
            kinds.setdefault(pair, f"pair{len(kinds)}") for pair in zip(labels, others, strict=True)
        ]
    folded = fold(pairs)
    before, unit, after = (len(expand(folded[k])) for k in ("prefix", "pattern", "suffix"))
    return _replaced(
        config,
        mixers=mixers,
        blocks=blocks,
        prefix=terms(labels[:before]),
        pattern=terms(labels[before : before + unit]),
        suffix=terms(labels[len(labels) - after :]) if after else "",
    )


def _replaced(config: ModelConfig, **settings) -> ModelConfig:
    """`dataclasses.replace` whose complaints are for users."""
    try:
        return dataclasses.replace(config, **settings)
    except Invalid as error:
        raise UserError(f"the new model's {error.field} {error}") from None


def stacked_like(config: ModelConfig, layout: Layout) -> ModelConfig:
    """The same model with its layers stacked as those of another model of the same depth.

    Raises:
      UserError: where layers that share an array there have different settings here.
    """
    layers = layers_of(config)
    names, mixers, blocks = _named(layers)
    labels = _labels(names, layers)
    before, unit = len(layout.prefix), len(layout.unit)
    end = before + unit * layout.repeats
    for index in range(before, end):
        first = before + (index - before) % unit
        if labels[index] != labels[first]:
            raise UserError(
                f"the teacher's layers {first} and {index} differ ({labels[first]} and"
                f" {labels[index]}), and the student's model.pattern makes them share an array: write"
                " a pattern that repeats with the teacher's layers, as the transfer does"
            )
    return _replaced(
        config,
        mixers=mixers,
        blocks=blocks,
        prefix=terms(labels[:before]),
        pattern=terms(labels[before : before + unit] if layout.repeats else labels[:1]),
        suffix=terms(labels[end:]),
    )


def _labels(names: Sequence[str], layers: Sequence[LayerSettings]) -> list[str]:
    """The layers as a pattern writes them."""
    return [
        name if layer.feedforward is None else f"{name}+{layer.feedforward}"
        for name, layer in zip(names, layers, strict=True)
    ]


def _named(
    layers: Sequence[LayerSettings],
) -> tuple[list[str], dict[str, MixerConfig], dict[str, BlockConfig]]:
    """(the name of each layer's mixer, mixers by name, blocks by name), different ones by other names."""
    named: dict[str, tuple[MixerConfig, BlockConfig | None]] = {}
    names = []
    for layer in layers:
        if layer.mixer is None:
            names.append(NONE)
            continue
        number, label = 1, layer.name
        while named.setdefault(label, (layer.mixer, layer.block)) != (layer.mixer, layer.block):
            number += 1
            label = f"{layer.name}_{number}"
        names.append(label)
    mixers = {name: mixer for name, (mixer, _) in named.items()}
    return names, mixers, {name: block for name, (_, block) in named.items() if block is not None}

"""Windows of a model of Native Hybrid Attention, layer by layer: they have no parameters.

A converted model keeps its weights whatever its windows are, so they may be chosen after training.
"""

import dataclasses
from collections.abc import Mapping

from hybridlm.distill.layers import layers_of, with_layers
from hybridlm.errors import UserError
from hybridlm.models.mixers.nha import NHAConfig
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.runs.opened import OpenedModel


def nha_layers(config: ModelConfig) -> tuple[int, ...]:
    """The layers of Native Hybrid Attention, bottom to top.

    Raises:
      UserError: if there is none.
    """
    layers = [i for i, x in enumerate(layers_of(config)) if isinstance(x.mixer, NHAConfig)]
    if not layers:
        raise UserError("the model has no layer of Native Hybrid Attention (kind='nha')")
    return tuple(layers)


def windowed_config(config: ModelConfig, windows: Mapping[int, int | None]) -> ModelConfig:
    """The model with other windows.

    Args:
      windows: by number of the layer; None sees all tokens, 0 is gated slot attention.

    Raises:
      UserError: for a layer that has no Native Hybrid Attention, or a negative window.
    """
    own, layers = set(nha_layers(config)), layers_of(config)
    for index, window in windows.items():
        if index not in own:
            raise UserError(f"layer {index} has no Native Hybrid Attention, and so no window of it")
        if window is not None and window < 0:
            raise UserError(f"a window is at least 0 tokens, not {window}, in layer {index}")
        mixer = dataclasses.replace(layers[index].mixer, window=window)
        layers[index] = layers[index]._replace(mixer=mixer)
    return with_layers(config, layers)


def with_windows(opened: OpenedModel, windows: Mapping[int, int | None]) -> OpenedModel:
    """`windowed_config` with the same weights.

    Raises:
      UserError: for a layer that has no Native Hybrid Attention.
    """
    model = Model.of(windowed_config(opened.config, windows))
    params = model.from_names(opened.model.by_name(opened.params))
    settings = {k: v for k, v in opened.settings.items() if k != "architecture"}
    return dataclasses.replace(opened, model=model, params=params, settings=settings, averaged=())


def full_layers(depth: int, count: int, residue: int = 0) -> tuple[int, ...]:
    """The layers that see all tokens: one in each block of depth // count, at place `residue`.

    The rule of the authors' code (arXiv 2510.07019): layer % block == residue. Which residue their
    models have is not published.

    Raises:
      UserError: if `count` does not divide the depth, or a block has no such place.
    """
    if count == 0:
        return ()
    if count < 0 or depth % count:
        raise UserError(f"{count} full layers do not divide the model's {depth} layers")
    block = depth // count
    if not 0 <= residue < block:
        raise UserError(f"residue must be from 0 to {block - 1}, a place in a block, not {residue}")
    return tuple(range(residue, depth, block))

"""HyPE, the positions of a hybrid (HypeNet, arXiv 2601.22156, sec. 4.1): none in attention.

Recurrent layers keep RoPE, and layers with full softmax attention lose it; their logits grow with the
position t as log_a(t + a), which matters beyond the training length. Only settings change.
"""

import dataclasses

from hybridlm.distill.layers import LayerSettings, layers_of, with_layers
from hybridlm.errors import UserError
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.params import Model
from hybridlm.models.positional import TemperatureConfig
from hybridlm.models.settings import ModelConfig
from hybridlm.progress import doing
from hybridlm.runs.opened import OpenedModel


def with_hype(opened: OpenedModel, scale: float | None) -> OpenedModel:
    """The model without RoPE in its full attention; the parameters are the same.

    Args:
      scale: a of the logits' factor log_a(t + a), above 1 (HypeNet: 500 to 900); None for no factor.

    Raises:
      UserError: as `hype_config`.
    """
    with doing("giving the changed model its parameters"):
        model = Model.of(hype_config(opened.config, scale))
        params = model.from_names(opened.model.by_name(opened.params))
    settings = {k: v for k, v in opened.settings.items() if k != "architecture"}
    return dataclasses.replace(opened, model=model, params=params, settings=settings)


def hype_config(config: ModelConfig, scale: float | None) -> ModelConfig:
    """The settings of `with_hype`.

    Raises:
      UserError: if no layer has full attention, or no other layer has RoPE.
    """
    layers = layers_of(config)
    full = [i for i, layer in enumerate(layers) if _is_full(layer)]
    if not full:
        raise UserError("no layer has full softmax attention, from which HyPE takes RoPE")
    others = [layer for i, layer in enumerate(layers) if i not in full]
    if not any(getattr(layer.mixer, "rope", None) for layer in others):
        raise UserError(
            "no layer but those of full attention has RoPE, and HyPE needs positions in the recurrent"
            " ones: use lightning or nha, or attention with a window, with rope"
        )
    temperature = None if scale is None else TemperatureConfig(scale=scale)

    def changed(layer: LayerSettings) -> LayerSettings:
        mixer = dataclasses.replace(layer.mixer, rope=None, temperature=temperature)
        return layer._replace(mixer=mixer)

    return with_layers(config, [changed(x) if i in full else x for i, x in enumerate(layers)])


def _is_full(layer: LayerSettings) -> bool:
    mixer = layer.mixer
    return isinstance(mixer, AttentionConfig) and mixer.window is None and mixer.chunk is None

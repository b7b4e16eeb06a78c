"""Mamba-2 (arXiv 2405.21060): layers of one mixer each, without feed-forwards."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts, state_space
from hybridlm.convert.family import (
    Family,
    Inexpressible,
    mixers_of,
    norm,
    only_value,
    require_block,
)
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.absent import NoFeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.mamba2 import Mamba2Config
from hybridlm.models.settings import ModelConfig

NAMES = {
    "heads": "num_heads",
    "head_dim": "head_dim",
    "state_dim": "state_size",
    "groups": "n_groups",
    "conv_width": "conv_kernel",
    "conv_bias": "use_conv_bias",
}
DEFAULTS = {"heads": 128, "state_dim": 128, "groups": 8, "conv_width": 4, "conv_bias": True}


class Mamba2(Family):
    """Pre-norm blocks of a Mamba-2 mixer."""

    architecture: ClassVar[str] = "Mamba2ForCausalLM"
    model_type: ClassVar[str] = "mamba2"
    models: ClassVar[str] = "Mamba-2, Codestral Mamba"
    stem: ClassVar[str] = "backbone."
    embedding: ClassVar[str] = "embeddings"
    final_norm: ClassVar[str] = "norm_f"

    def settings(self, keys: Keys) -> dict[str, Any]:
        sizes = parts.sizes(keys, tied=False, eps="layer_norm_epsilon")
        sizes["norm_eps"] = keys.number("layer_norm_epsilon", 1e-5)
        keys.only("hidden_act", "silu", "swish")
        keys.harmless("time_step_rank", "time_step_min", "time_step_max", "time_step_floor")
        mixer = state_space.mamba2(keys, NAMES, DEFAULTS)
        inner = keys.integer("expand", 2) * sizes["width"]
        mixer |= {
            "head_dim": state_space.head_dim(keys, "head_dim", inner, mixer["heads"]),
            "bias": keys.flag("use_bias", False),
            "dt_limits": state_space.limits(keys),
        }
        layers = [LayerSettings("mamba", mixer, None)] * keys.integer("num_hidden_layers")
        return sizes | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = mixers_of(model, Mamba2Config)
        for i, feedforward in enumerate(model.layer_feedforwards()):
            if not isinstance(feedforward, NoFeedForwardConfig):
                raise Inexpressible(f"layer {i} has a feed-forward")
        return {
            **parts.size_keys(model, "layer_norm_epsilon"),
            **state_space.mamba2_keys(model, mixers, NAMES),
            "expand": state_space.expand(model, mixers[0]),
            "use_bias": only_value((x.bias for x in mixers), "bias") is True,
            **state_space.limit_keys(mixers[0]),
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return [
            *norm(model, "norm", "mixer_norm"),
            *state_space.mamba2_rules(model, mixer, "mixer"),
        ]

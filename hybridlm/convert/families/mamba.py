"""Mamba (arXiv 2312.00752) and Falcon-Mamba: layers of one mixer each, without feed-forwards."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts, selective
from hybridlm.convert.family import Family, Inexpressible, mixers_of, norm, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.absent import NoFeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.mamba1 import Mamba1Config
from hybridlm.models.settings import ModelConfig

#: Keys that give initial values, or say again what others say.
HARMLESS = (
    *("time_step_scale", "time_step_min", "time_step_max", "time_step_floor"),
    *("time_step_init_scheme", "rescale_prenorm_residual", "residual_in_fp32"),
    *("d_model", "d_inner", "n_layer", "pad_vocab_size_multiple", "fused_add_norm"),
)


class Mamba(Family):
    """Pre-norm blocks of a Mamba mixer."""

    architecture: ClassVar[str] = "MambaForCausalLM"
    model_type: ClassVar[str] = "mamba"
    models: ClassVar[str] = "Mamba 130M to 2.8B"
    stem: ClassVar[str] = "backbone."
    embedding: ClassVar[str] = "embeddings"
    final_norm: ClassVar[str] = "norm_f"
    aliases: ClassVar[tuple[tuple[str, str], ...]] = (
        ("backbone.embedding.weight", "backbone.embeddings.weight"),
    )
    mixer_norm: ClassVar[str] = "none"

    def settings(self, keys: Keys) -> dict[str, Any]:
        sizes = parts.sizes(keys, tied=True, eps="layer_norm_epsilon")
        sizes["norm_eps"] = keys.number("layer_norm_epsilon", 1e-5)
        keys.harmless(*HARMLESS)
        keys.only("rms_norm", True)
        if keys.values.get("ssm_cfg") in (None, {}):
            keys.harmless("ssm_cfg")
        # A size that is given counts before the factor: Falcon-Mamba 7B has a factor of 16.
        inner = keys.integer("expand", 2) * sizes["width"]
        inner = keys.integer("intermediate_size", inner)
        mixer = selective.mamba1(keys, selective.NAMES, inner, self.mixer_norm)
        mixer |= self.norm_settings(keys)
        layers = [LayerSettings("mamba", mixer, None)] * keys.integer("num_hidden_layers")
        return sizes | laid_out(layers)

    def norm_settings(self, keys: Keys) -> dict[str, Any]:
        """The settings of the norms in the mixer."""
        return {}

    def norm_keys(self, model: ModelConfig, mixer: Mamba1Config) -> dict[str, Any]:
        """The inverse of `norm_settings`."""
        return {}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = mixers_of(model, Mamba1Config)
        for i, feedforward in enumerate(model.layer_feedforwards()):
            if not isinstance(feedforward, NoFeedForwardConfig):
                raise Inexpressible(f"layer {i} has a feed-forward")
        return {
            **parts.size_keys(model, "layer_norm_epsilon"),
            **selective.mamba1_keys(model, mixers, selective.NAMES),
            **self.norm_keys(model, mixers[0]),
            "intermediate_size": mixers[0].channels(model.width),
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return [
            *norm(model, "norm", "mixer_norm"),
            *selective.mamba1_rules(model, mixer, "mixer"),
        ]


class FalconMamba(Mamba):
    """Mamba with norms of the low-rank time step, B and C that have no learned scale."""

    architecture: ClassVar[str] = "FalconMambaForCausalLM"
    model_type: ClassVar[str] = "falcon_mamba"
    models: ClassVar[str] = "Falcon-Mamba 7B"
    mixer_norm: ClassVar[str] = "unscaled"
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()

    def norm_settings(self, keys: Keys) -> dict[str, Any]:
        return {"norm_eps": keys.number("mixer_rms_eps", 1e-6)}

    def norm_keys(self, model: ModelConfig, mixer: Mamba1Config) -> dict[str, Any]:
        return {"mixer_rms_eps": mixer.norm_eps or model.norm_eps}

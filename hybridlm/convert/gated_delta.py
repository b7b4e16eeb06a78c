"""Gated DeltaNet as transformers writes it: fused projections, one convolution for q, k and v."""

from typing import Any

from hybridlm.convert.family import Inexpressible, only_value
from hybridlm.convert.keys import Keys
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import TRANSPOSED, ConvKernel, Split, chain
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.delta import Sizes
from hybridlm.models.mixers.gdn import GDNConfig
from hybridlm.models.settings import ModelConfig

LINEAR = "linear_attention"


def delta_settings(keys: Keys, *, heads: int, value_heads: int, sizes: int) -> dict[str, Any]:
    """The settings of the mixer.

    Args:
      heads, value_heads, sizes: the class's defaults; `sizes` of keys and values.
    """
    keys.only("hidden_act", "silu", "swish", why="the convolutions here are followed by silu")
    return {
        "kind": "gdn",
        "heads": keys.integer("linear_num_key_heads", heads),
        "value_heads": keys.integer("linear_num_value_heads", value_heads),
        "head_dim": keys.integer("linear_key_head_dim", sizes),
        "value_dim": keys.integer("linear_value_head_dim", sizes),
        "conv_width": keys.integer("linear_conv_kernel_dim", 4),
    }


def delta_keys(model: ModelConfig, layers: list[GDNConfig]) -> dict[str, Any]:
    """The inverse of `delta_settings`."""
    sizes = only_value((x.sizes(model.width) for x in layers), "sizes")
    return {
        "linear_num_key_heads": sizes.heads,
        "linear_num_value_heads": sizes.value_heads,
        "linear_key_head_dim": sizes.key_size,
        "linear_value_head_dim": sizes.value_size,
        "linear_conv_kernel_dim": only_value((x.conv_width for x in layers), "conv_width"),
    }


def conv_rule(theirs: str, sizes: Sizes) -> Rule:
    """The convolution of q, k and v, which transformers has as one."""
    parts = Split((sizes.keys, sizes.keys, sizes.values))
    ours = tuple(f"mixer.{name}_conv.kernel" for name in ("q", "k", "v"))
    return rule(f"{theirs}.conv1d.weight", ours, chain(parts, ConvKernel()))


def decay_rules(theirs: str) -> list[Rule]:
    """The parameters of the decay besides its projection."""
    return [
        rule(f"{theirs}.A_log", "mixer.decay.a_log"),
        rule(f"{theirs}.dt_bias", "mixer.decay.dt_bias"),
    ]


def fused_by_head(sizes: Sizes, theirs: str = "linear_attn") -> list[Rule]:
    """The projections of Qwen3-Next: q, k, values and gates of a key head, then the next head's."""
    shared = sizes.value_heads // sizes.heads
    values = shared * sizes.value_size
    four = Split((sizes.key_size, sizes.key_size, values, values), sizes.heads)
    two = Split((shared, shared), sizes.heads)
    qkvz = tuple(f"mixer.{name}.kernel" for name in ("q", "k", "v", "output.gate"))
    ba = ("mixer.beta.kernel", "mixer.decay.proj.kernel")
    return [
        rule(f"{theirs}.in_proj_qkvz.weight", qkvz, chain(four, TRANSPOSED)),
        rule(f"{theirs}.in_proj_ba.weight", ba, chain(two, TRANSPOSED)),
    ]


def fused(sizes: Sizes, theirs: str = "linear_attn") -> list[Rule]:
    """The projections of Qwen3.5: q, k and v in one, the others apart."""
    three = Split((sizes.keys, sizes.keys, sizes.values))
    qkv = tuple(f"mixer.{name}.kernel" for name in ("q", "k", "v"))
    return [
        rule(f"{theirs}.in_proj_qkv.weight", qkv, chain(three, TRANSPOSED)),
        *linear(f"{theirs}.in_proj_z", "mixer.output.gate"),
        *linear(f"{theirs}.in_proj_b", "mixer.beta"),
        *linear(f"{theirs}.in_proj_a", "mixer.decay.proj"),
    ]


def delta_and_attention(
    model: ModelConfig,
) -> tuple[list[str], list[GDNConfig], list[AttentionConfig]]:
    """The type of each layer, the mixers of linear layers, and those of full layers.

    Raises:
      Inexpressible: if a layer is of another kind.
    """
    types, linear_layers, full_layers = [], [], []
    for i, (_, mixer) in enumerate(model.layer_mixers()):
        if isinstance(mixer, GDNConfig):
            types.append(LINEAR)
            linear_layers.append(mixer)
        elif isinstance(mixer, AttentionConfig):
            types.append("full_attention")
            full_layers.append(mixer)
        else:
            raise _other(i, mixer)
    return types, linear_layers, full_layers


def _other(index: int, mixer: MixerConfig) -> Inexpressible:
    return Inexpressible(f"layer {index} is {mixer.mechanism}, not gdn or attention")

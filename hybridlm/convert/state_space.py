"""What families with Mamba-2 layers share: its settings and tensors, both ways."""

import math
from collections.abc import Mapping
from typing import Any

from hybridlm.convert import parts
from hybridlm.convert.family import Inexpressible, not_none, only_value
from hybridlm.convert.keys import Keys
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import TRANSPOSED, ConvKernel, Split, chain
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.mamba2 import Mamba2Config
from hybridlm.models.settings import ModelConfig

#: Names of the keys where they begin with "mamba_" (Bamba, Granite 4, Falcon-H1).
PREFIXED = {
    "heads": "mamba_n_heads",
    "head_dim": "mamba_d_head",
    "state_dim": "mamba_d_state",
    "groups": "mamba_n_groups",
    "conv_width": "mamba_d_conv",
    "conv_bias": "mamba_conv_bias",
}
OTHER_PREFIXED = ("mamba_expand", "mamba_proj_bias", "time_step_limit")
DEFAULTS = {"heads": 128, "state_dim": 256, "groups": 1, "conv_width": 4, "conv_bias": True}
#: Keys that choose how the layer is computed, or its initial values.
HARMLESS = ("mamba_chunk_size", "chunk_size", "rescale_prenorm_residual", "residual_in_fp32")


def mamba2(keys: Keys, names: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a Mamba-2 mixer.

    Args:
      names: the key of each setting, heads to conv_bias, as in `PREFIXED`.
      defaults: of the class; None for a head_dim that follows from the inner width.
    """
    found = {
        name: keys.flag(key, defaults[name])
        if name == "conv_bias"
        else keys.integer(key, defaults[name])
        for name, key in names.items()
        if name != "head_dim"
    }
    keys.harmless(*HARMLESS)
    return {"kind": "mamba2", "norm": "after_gate"} | found


def prefixed(keys: Keys, width: int, inner: int | None = None) -> dict[str, Any]:
    """The settings of a Mamba-2 mixer whose keys are those of `PREFIXED`.

    Args:
      inner: inner width; None is mamba_expand times the model's.
    """
    # These classes apply the feed-forward's activation after the mixer's convolution, too.
    keys.only("hidden_act", "silu", "swish", why="hybridlm has Mamba-2 with silu alone")
    mixer = mamba2(keys, PREFIXED, DEFAULTS)
    expand = keys.integer("mamba_expand", 2)
    return mixer | {
        "head_dim": head_dim(keys, PREFIXED["head_dim"], inner or expand * width, mixer["heads"]),
        "bias": keys.flag("mamba_proj_bias", False),
        "dt_limits": limits(keys),
    }


def without(keys: Keys) -> None:
    """Notes the keys that `prefixed` reads, for a model without Mamba-2 layers."""
    keys.harmless(*PREFIXED.values(), *HARMLESS, *OTHER_PREFIXED)


def prefixed_keys(model: ModelConfig, mixers: list[Mamba2Config]) -> dict[str, Any]:
    """The inverse of `prefixed` without `inner`; what the class needs without mixers."""
    if not mixers:
        return {"mamba_n_heads": 1}  # the default need not divide the width
    return {
        **mamba2_keys(model, mixers, PREFIXED),
        "mamba_expand": expand(model, mixers[0]),
        "mamba_proj_bias": mixers[0].bias is True,
        **limit_keys(mixers[0]),
    }


def head_dim(keys: Keys, name: str, inner: int, heads: int) -> int:
    """The size of a head, where the config may leave it "auto".

    Args:
      inner: inner width, which heads * head_dim must be.
    """
    found = keys.values.get(name)
    if found in (None, "auto"):
        keys.harmless(name)
        found = inner // heads
    else:
        found = keys.integer(name)
    if found * heads != inner:
        keys.refuse(name, f"is {found}: {heads} heads of it are not the inner width {inner}")
    return found


def limits(keys: Keys, name: str = "time_step_limit") -> tuple[float, ...] | None:
    """`dt_limits` from the lowest and highest time step."""
    found = keys.list(name, default=[0.0, math.inf])
    if len(found) != 2:
        keys.refuse(name, f"must be two numbers, not {found}")
    low, high = map(_number, found)
    if not isinstance(low, float) or not isinstance(high, float):
        keys.refuse(name, f"must be two numbers, not {found}")
    if high < math.inf:
        return (low, high)
    return (low,) if low > 0 else None


def _number(value: Any) -> float | None:
    if isinstance(value, dict):  # how transformers writes infinity
        value = value.get("__float__", "")
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def limit_keys(mixer: Mamba2Config) -> dict[str, Any]:
    """The inverse of `limits`."""
    low, high = (*(mixer.dt_limits or (0.0,)), math.inf)[:2]
    return {"time_step_limit": [low, high if high < math.inf else {"__float__": "Infinity"}]}


def mamba2_keys(
    model: ModelConfig, mixers: list[Mamba2Config], names: Mapping[str, str]
) -> dict[str, Any]:
    """The inverse of `mamba2`, for all Mamba-2 mixers of a model; {} without any."""
    if not mixers:
        return {}
    mixer = only_value(mixers, "the mixer")
    values = {name: getattr(mixer, name) for name in names} | {
        "heads": mixer.head_count(model.width)
    }
    return not_none({key: values[name] for name, key in names.items()})


def expand(model: ModelConfig, mixer: Mamba2Config) -> int:
    """The inner width over the model's.

    Raises:
      Inexpressible: if it is no whole number.
    """
    inner = mixer.head_count(model.width) * mixer.head_dim
    if inner % model.width:
        raise Inexpressible(
            f"the inner width {inner} of Mamba-2 is no multiple of the width {model.width}"
        )
    return inner // model.width


def mamba2_rules(
    model: ModelConfig, mixer: Mamba2Config, theirs: str, ours: str = "mixer"
) -> list[Rule]:
    """The rules of a Mamba-2 mixer: one projection for z, x, B and C, and dt; one convolution."""
    heads = mixer.head_count(model.width)
    inner, shared = heads * mixer.head_dim, 2 * mixer.groups * mixer.state_dim
    into = [f"{ours}.{name}" for name in ("gate", "value", "shared", "dt")]
    convs = [f"{ours}.{name}" for name in ("conv", "shared_conv")]
    projections, channels = Split((inner, inner, shared, heads)), Split((inner, shared))
    rules = [
        rule(
            f"{theirs}.in_proj.weight",
            [f"{x}.kernel" for x in into],
            chain(projections, TRANSPOSED),
        ),
        rule(
            f"{theirs}.conv1d.weight",
            [f"{x}.kernel" for x in convs],
            chain(channels, ConvKernel()),
        ),
        rule(f"{theirs}.dt_bias", f"{ours}.dt_bias"),
        rule(f"{theirs}.A_log", f"{ours}.log_a"),
        rule(f"{theirs}.D", f"{ours}.skip"),
        *linear(f"{theirs}.out_proj", f"{ours}.out", bias=mixer.bias in (True, "out")),
    ]
    if mixer.bias in (True, "in"):
        rules.append(rule(f"{theirs}.in_proj.bias", [f"{x}.bias" for x in into], projections))
    if mixer.conv_bias:
        rules.append(rule(f"{theirs}.conv1d.bias", [f"{x}.bias" for x in convs], channels))
    if mixer.norm != "none":
        rules.append(rule(f"{theirs}.norm.weight", f"{ours}.norm.norm.scale"))
    return rules


def projection_bias(inward: bool, outward: bool) -> bool | str:
    """`bias` of a mixer whose two projections have biases or not."""
    if inward == outward:
        return inward
    return "in" if inward else "out"


def split_kinds(
    model: ModelConfig,
) -> tuple[dict[int, Mamba2Config], dict[int, AttentionConfig]]:
    """The Mamba-2 mixers and the attention mixers, by the number of their layer.

    Raises:
      Inexpressible: if a layer has another.
    """
    mamba, attention = {}, {}
    for i, (_, mixer) in enumerate(model.layer_mixers()):
        if isinstance(mixer, Mamba2Config):
            mamba[i] = mixer
        elif isinstance(mixer, AttentionConfig):
            attention[i] = mixer
        else:
            raise Inexpressible(f"layer {i} is {mixer.mechanism}, not Mamba-2 or attention")
    return mamba, attention


def mixer_rules(model: ModelConfig, mixer: MixerConfig) -> list[Rule]:
    """The rules of a layer's mixer, Mamba-2 or attention."""
    if isinstance(mixer, Mamba2Config):
        return mamba2_rules(model, mixer, "mamba")
    return parts.attention_rules(model, mixer)

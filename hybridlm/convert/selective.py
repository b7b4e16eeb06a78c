"""What families with Mamba layers (Mamba-1) share: the mixer's settings and tensors, both ways."""

from collections.abc import Mapping, Sequence
from typing import Any

from hybridlm.convert.family import Inexpressible, only_value
from hybridlm.convert.keys import Keys
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import TRANSPOSED, ConvKernel, Split, chain
from hybridlm.models.mixers.mamba1 import Mamba1Config
from hybridlm.models.settings import ModelConfig

#: The key of each setting: of Mamba and Falcon-Mamba, and of Jamba.
NAMES = {
    "state_dim": "state_size",
    "dt_rank": "time_step_rank",
    "conv_width": "conv_kernel",
    "bias": "use_bias",
    "conv_bias": "use_conv_bias",
}
PREFIXED = {
    "state_dim": "mamba_d_state",
    "dt_rank": "mamba_dt_rank",
    "conv_width": "mamba_d_conv",
    "bias": "mamba_proj_bias",
    "conv_bias": "mamba_conv_bias",
}
#: The classes' defaults, which all have.
DEFAULTS = {"state_dim": 16, "conv_width": 4, "bias": False, "conv_bias": True}
#: Keys that choose how the layer is computed, or its initial values.
HARMLESS = ("use_mambapy", "use_falcon_mambapy", "use_associative_scan", "use_mamba_kernels")


def mamba1(keys: Keys, names: Mapping[str, str], inner: int, norm: str) -> dict[str, Any]:
    """The settings of a Mamba mixer.

    Args:
      names: `NAMES` or `PREFIXED`.
      inner: channels.
      norm: of the low-rank time step, B and C.
    """
    keys.only("hidden_act", "silu", "swish", why="hybridlm has Mamba with silu alone")
    keys.harmless(*HARMLESS)
    found: dict[str, Any] = {"kind": "mamba1", "inner": inner, "norm": norm}
    for name, default in DEFAULTS.items():
        read = keys.flag if isinstance(default, bool) else keys.integer
        found[name] = read(names[name], default)
    found["dt_rank"] = _rank(keys, names["dt_rank"])
    return found


def _rank(keys: Keys, name: str) -> int | None:
    if keys.values.get(name) == "auto":
        keys.harmless(name)
        return None
    return keys.integer(name, None)


def mamba1_keys(
    model: ModelConfig, mixers: Sequence[Mamba1Config], names: Mapping[str, str]
) -> dict[str, Any]:
    """The inverse of `mamba1` without the channels, for all Mamba mixers of a model; {} without any.

    Raises:
      Inexpressible: if two differ.
    """
    if not mixers:
        return {}
    mixer = only_value(mixers, "the mixer")
    return {key: getattr(mixer, name) for name, key in names.items()} | {
        names["dt_rank"]: mixer.rank(model.width)
    }


def mamba1_rules(
    model: ModelConfig, mixer: Mamba1Config, theirs: str, ours: str = "mixer"
) -> list[Rule]:
    """The rules of a Mamba mixer: one projection for x and z, one for the time step, B and C."""
    inner, rank = mixer.channels(model.width), mixer.rank(model.width)
    into = [f"{ours}.{name}" for name in ("value", "gate")]
    selected = [f"{ours}.{name}.kernel" for name in ("dt_down", "shared")]
    halves, parts = Split((inner, inner)), Split((rank, 2 * mixer.state_dim))
    rules = [
        rule(f"{theirs}.in_proj.weight", [f"{x}.kernel" for x in into], chain(halves, TRANSPOSED)),
        rule(f"{theirs}.conv1d.weight", f"{ours}.conv.kernel", ConvKernel()),
        rule(f"{theirs}.x_proj.weight", selected, chain(parts, TRANSPOSED)),
        rule(f"{theirs}.dt_proj.weight", f"{ours}.dt_up.kernel", TRANSPOSED),
        rule(f"{theirs}.dt_proj.bias", f"{ours}.dt_bias"),
        rule(f"{theirs}.A_log", f"{ours}.log_a"),
        rule(f"{theirs}.D", f"{ours}.skip"),
        *linear(f"{theirs}.out_proj", f"{ours}.out", bias=mixer.bias),
    ]
    if mixer.bias:
        rules.append(rule(f"{theirs}.in_proj.bias", [f"{x}.bias" for x in into], halves))
    if mixer.conv_bias:
        rules.append(rule(f"{theirs}.conv1d.bias", f"{ours}.conv.bias"))
    if mixer.norm == "rmsnorm":
        rules += [
            rule(f"{theirs}.{x}_layernorm.weight", f"{ours}.{x}_norm.scale")
            for x in ("dt", "b", "c")
        ]
    return rules


def expand(model: ModelConfig, mixer: Mamba1Config) -> int:
    """The channels over the model's width.

    Raises:
      Inexpressible: if it is no whole number.
    """
    inner = mixer.channels(model.width)
    if inner % model.width:
        raise Inexpressible(
            f"the {inner} channels of Mamba are no multiple of the width {model.width}"
        )
    return inner // model.width

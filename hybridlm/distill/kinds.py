"""What each kind of mixer takes over from softmax attention: default settings, and projections.

Kinds without projections (rglru, short_conv, mamba1) have no queries and keys of their own, so all of
their parameters start fresh. A kind that is not listed here is refused:

- mla, dsa: their keys and values come from a latent vector, not from projections of the input.
- parallel, none: they are not one mixer.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig

Role = Literal["q", "k", "v", "out"]


class Part(NamedTuple):
    """Outputs of a linear map that do what one of attention's projections does.

    Attributes:
      role: of attention's projection; the heads of "out" are on the input side of the map.
      heads, size: numbers and size of heads side by side.
      times: outputs of each head side by side, all of which start as the head's.
    """

    role: Role
    heads: int
    size: int
    times: int = 1


#: By the path of a linear map in the mixer, its parts side by side.
Parts = Mapping[str, tuple[Part, ...]]


class Kind(NamedTuple):
    """How mixers of a kind replace attention.

    Attributes:
      settings: (attention's settings, width) -> default settings of the new mixer.
      parts: (settings of the new mixer, width) -> its projections.
      identity: paths of convolutions that start as the identity, and of biases and shares of the token
        before that start at 0, so that queries, keys and values are first the teacher's.
      slot_gate: whether `gate` is a gate of slots that starts as the key projection.
    """

    settings: Callable[[AttentionConfig, int], dict[str, Any]]
    parts: Callable[[Any, int], Parts]
    identity: tuple[str, ...] = ()
    slot_gate: bool = False


def _shared_heads(config: Any, width: int) -> Parts:
    """Attention, MoBA, gated slots and NHA: key/value heads may be fewer than query heads."""
    size = config.head_size(width)
    value = config.value_size(width) if isinstance(config, AttentionConfig) else size
    return {
        "q": (Part("q", config.heads, size),),
        "k": (Part("k", config.kv_heads, size),),
        "v": (Part("v", config.kv_heads, value),),
        "out": (Part("out", config.heads, value),),
    }


def _one_size(keys: int, key_size: int, values: int, value_size: int) -> Parts:
    return {
        "q": (Part("q", keys, key_size),),
        "k": (Part("k", keys, key_size),),
        "v": (Part("v", values, value_size),),
        "out": (Part("out", values, value_size),),
    }


def _delta_parts(config: Any, width: int) -> Parts:
    """Each update of a token has a key and a value, which all start as the teacher's (DeltaProduct)."""
    sizes, updates = config.sizes(width), config.updates_per_token()
    return {
        "q": (Part("q", sizes.heads, sizes.key_size),),
        "k": (Part("k", sizes.heads, sizes.key_size, updates),),
        "v": (Part("v", sizes.value_heads, sizes.value_size, updates),),
        "out": (Part("out", sizes.value_heads, sizes.value_size),),
    }


def _gla_parts(config: Any, width: int) -> Parts:
    key_size, value_size = config.sizes(width)
    return _one_size(config.heads, key_size, config.heads, value_size)


def _lightning_parts(config: Any, width: int) -> Parts:
    size = config.head_size(width)
    return _one_size(config.heads, size, config.heads, size)


def _mlstm_parts(config: Any, width: int) -> Parts:
    key_size, value_size = config.head_sizes(width)
    return _one_size(config.heads, key_size, config.heads, value_size)


def _mamba2_parts(config: Any, width: int) -> Parts:
    """C reads the state as a query does, B writes it as a key, x is the value (arXiv 2408.15237)."""
    heads, state = config.head_count(width), config.state_dim
    return {
        "shared": (Part("k", config.groups, state), Part("q", config.groups, state)),
        "value": (Part("v", heads, config.head_dim),),
        "out": (Part("out", heads, config.head_dim),),
    }


def _mamba3_parts(config: Any, width: int) -> Parts:
    """As Mamba-2's, but C and B are apart, and have the groups of each rank side by side."""
    heads, state = config.head_count(width), config.state_dim
    return {
        "query": (Part("q", config.groups, state),) * config.rank,
        "key": (Part("k", config.groups, state),) * config.rank,
        "value": (Part("v", heads, config.head_dim),),
        "out": (Part("out", heads, config.head_dim),),
    }


def _rwkv7_parts(config: Any, width: int) -> Parts:
    heads, size = width // config.head_dim, config.head_dim
    return {
        "r": (Part("q", heads, size),),
        "k": (Part("k", heads, size),),
        "v": (Part("v", heads, size),),
        "out": (Part("out", heads, size),),
    }


def _hgrn2_parts(config: Any, width: int) -> Parts:
    heads, size = width // config.expand, config.expand
    return {
        "q": (Part("q", heads, size),),
        "input": (Part("v", heads, size),),
        "out": (Part("out", heads, size),),
    }


def _heads(attention: AttentionConfig, width: int) -> dict[str, Any]:
    return dict(heads=attention.heads, head_dim=attention.head_size(width))


def _values(attention: AttentionConfig, width: int) -> dict[str, Any]:
    return dict(value_dim=attention.value_size(width))


def _factors(attention: AttentionConfig, width: int) -> tuple[float, float]:
    """The sizes of all query heads and of their values together, over the model's width."""
    sizes = attention.head_size(width), attention.value_size(width)
    return tuple(attention.heads * size / width for size in sizes)


def _state_space(attention: AttentionConfig, width: int) -> dict[str, Any]:
    return dict(
        heads=attention.heads,
        head_dim=attention.value_size(width),
        state_dim=attention.head_size(width),
        groups=attention.heads,
    )


def _attention(attention: AttentionConfig, width: int) -> dict[str, Any]:
    del width
    return {f.name: getattr(attention, f.name) for f in dataclasses.fields(attention)}


def _grouped(attention: AttentionConfig, width: int) -> dict[str, Any]:
    """Slots of a pretrained model have no feature map (arXiv 2510.07019)."""
    return _heads(attention, width) | dict(
        kv_heads=attention.kv_heads,
        swish_qk=False,
        swish_v=False,
        output_norm=False,
        scale=attention.scale,
        bias=attention.bias in (True, "qkv"),
    )


_CONVS = ("q_conv", "k_conv", "v_conv")
_DELTA = Kind(lambda a, width: _heads(a, width) | _values(a, width), _delta_parts, _CONVS)

KINDS: dict[str, Kind] = {
    "attention": Kind(_attention, _shared_heads),
    "moba": Kind(
        lambda a, width: _heads(a, width) | dict(kv_heads=a.kv_heads, rope=a.rope), _shared_heads
    ),
    "nha": Kind(
        lambda a, width: _grouped(a, width) | dict(rope=a.rope), _shared_heads, slot_gate=True
    ),
    "gsa": Kind(_grouped, _shared_heads, slot_gate=True),
    "gdn": _DELTA,
    "kda": Kind(_heads, _delta_parts, _CONVS),
    "gdn2": _DELTA,
    "deltanet": _DELTA,
    "delta_product": _DELTA,
    "gla": Kind(
        lambda a, width: dict(
            heads=a.heads, **dict(zip(("expand_k", "expand_v"), _factors(a, width)))
        ),
        _gla_parts,
    ),
    # The recurrence of HypeNet (arXiv 2601.22156)
    "lightning": Kind(
        lambda a, width: (
            _heads(a, width)
            | dict(
                activation="none",
                rope=a.rope,
                qk_norm=True,
                scale=a.scale or a.head_size(width) ** -0.5,
            )
        ),
        _lightning_parts,
    ),
    "mlstm": Kind(
        lambda a, width: dict(
            heads=a.heads, **dict(zip(("qk_dim_factor", "v_dim_factor"), _factors(a, width)))
        ),
        _mlstm_parts,
    ),
    "mamba2": Kind(_state_space, _mamba2_parts, ("conv", "shared_conv")),
    "mamba3": Kind(_state_space, _mamba3_parts, ("query_bias", "key_bias")),
    # Values that later layers read could not be distilled block by block.
    "rwkv7": Kind(
        lambda a, width: dict(head_dim=a.head_size(width), value_residual=False),
        _rwkv7_parts,
        ("mix",),
    ),
    "hgrn2": Kind(lambda a, width: dict(expand=a.head_size(width)), _hgrn2_parts),
    "rglru": Kind(lambda a, width: dict(heads=a.heads), lambda config, width: {}),
    "short_conv": Kind(lambda a, width: {}, lambda config, width: {}),
    # Its B and C are maps of the convolved stream, not of the layer's input.
    "mamba1": Kind(lambda a, width: {}, lambda config, width: {}),
}


def new_mixer(given: Mapping[str, Any], attention: AttentionConfig, width: int) -> dict[str, Any]:
    """The settings of a mixer in the place of `attention`: `given`, with defaults that fit it."""
    return {**KINDS[given["kind"]].settings(attention, width), **given}


def parts_of(config: MixerConfig, width: int) -> Parts:
    """The projections of a mixer; none for a kind without."""
    return KINDS[config.kind_name].parts(config, width)

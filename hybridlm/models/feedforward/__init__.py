"""The registry of feed-forward kinds: the values of `kind` in feed-forward settings."""

from typing import Any

from hybridlm.models.feedforward.base import FeedForward, FeedForwardConfig
from hybridlm.models.feedforward.beside import BesideConfig
from hybridlm.models.feedforward.channel_mix import ChannelMixConfig
from hybridlm.models.feedforward.dense import (
    GatedConfig,
    GeGLUConfig,
    PlainConfig,
    SwiGLUConfig,
)
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.settings.kinds import read_kind

KINDS: dict[str, type[FeedForwardConfig]] = {
    c.kind_name: c
    for c in (
        BesideConfig,
        ChannelMixConfig,
        GatedConfig,
        GeGLUConfig,
        MoEConfig,
        PlainConfig,
        SwiGLUConfig,
    )
}

#: Well-known feed-forwards that there is no kind for.
ABSENT = ("expert_choice", "kan", "bilinear")

__all__ = ["KINDS", "FeedForward", "FeedForwardConfig", "read_feedforward"]


def read_feedforward(value: Any, path: str) -> FeedForwardConfig:
    """Reads the settings of one feed-forward; `kind` selects their dataclass, by default "swiglu".

    Raises:
      ConfigError: if the kind is unknown or a setting is invalid.
    """
    return read_kind(value, path, KINDS, "feed-forward", absent=ABSENT, default="swiglu")

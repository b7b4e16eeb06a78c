"""The registry of mixer kinds: what `kind=` in a config may say."""

from typing import Any

from hybridlm.dataclass_reader import nearest, read_dataclass
from hybridlm.errors import ConfigError
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.gsa import GSAConfig
from hybridlm.models.mixers.nha import NHAConfig
from hybridlm.models.mixers.rglru import RGLRUConfig

KINDS: dict[str, type[MixerConfig]] = {
    c.kind_name: c for c in (AttentionConfig, GSAConfig, NHAConfig, RGLRUConfig)
}

__all__ = ["KINDS", "LayerSpec", "Mixer", "MixerConfig", "SequenceContext", "read_mixer"]


def read_mixer(value: Any, path: str) -> MixerConfig:
    """Reads the settings of one mixer; `kind` says which dataclass they fill.

    Raises:
      ConfigError: where the kind is missing or unknown, or a setting is wrong.
    """
    if isinstance(value, MixerConfig):
        return value
    if not hasattr(value, "items"):
        raise ConfigError(f"{path} must be a mapping with a kind, not {value!r}")
    settings = dict(value.items())
    kind = settings.pop("kind", None)
    if kind is None:
        raise ConfigError(f"{path}.kind is missing: valid are: {', '.join(sorted(KINDS))}")
    if kind not in KINDS:
        raise ConfigError(f"{path}.kind is {kind!r}: {nearest(kind, KINDS)}")
    return read_dataclass(KINDS[kind], settings, path)

"""The registry of mixer kinds: the values that `kind` may have in a config."""

from typing import Any

from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.delta_product import DeltaProductConfig
from hybridlm.models.mixers.deltanet import DeltaNetConfig
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.gdn import GDNConfig
from hybridlm.models.mixers.gdn2 import GDN2Config
from hybridlm.models.mixers.gla import GLAConfig
from hybridlm.models.mixers.gsa import GSAConfig
from hybridlm.models.mixers.hgrn2 import HGRN2Config
from hybridlm.models.mixers.kda import KDAConfig
from hybridlm.models.mixers.lightning import LightningConfig
from hybridlm.models.mixers.mamba1 import Mamba1Config
from hybridlm.models.mixers.mamba2 import Mamba2Config
from hybridlm.models.mixers.mamba3 import Mamba3Config
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.mixers.mlstm import MLSTMConfig
from hybridlm.models.mixers.moba import MoBAConfig
from hybridlm.models.mixers.nha import NHAConfig
from hybridlm.models.mixers.parallel import ParallelConfig
from hybridlm.models.mixers.rglru import RGLRUConfig
from hybridlm.models.mixers.rwkv7 import RWKV7Config
from hybridlm.models.mixers.short_conv import ShortConvConfig
from hybridlm.settings.kinds import read_kind

KINDS: dict[str, type[MixerConfig]] = {
    c.kind_name: c
    for c in (
        AttentionConfig,
        DeltaNetConfig,
        DeltaProductConfig,
        DSAConfig,
        GDNConfig,
        GDN2Config,
        GLAConfig,
        GSAConfig,
        HGRN2Config,
        KDAConfig,
        LightningConfig,
        Mamba1Config,
        Mamba2Config,
        Mamba3Config,
        MLAConfig,
        MLSTMConfig,
        MoBAConfig,
        NHAConfig,
        ParallelConfig,
        RGLRUConfig,
        RWKV7Config,
        ShortConvConfig,
    )
}

#: Well-known mixers that there is no kind for.
ABSENT = (
    "rwkv4 rwkv5 rwkv6 eagle finch s4 s4d s5 h3 hyena hgrn lru longhorn"
    " slstm lstm gru minlstm mingru sru qrnn mega megalodon"
    " ttt ttt_linear ttt_mlp titans atlas miras mesa mesanet mesa_layer comba deltaformer"
    " linear_attention performer linformer cosformer based rebased log_linear_attention abc aft"
    " transnormer gateloop nystromformer synthesizer longformer bigbird reformer routing_transformer"
    " nsa native_sparse_attention path_attention differential_attention infini_attention"
).split()

__all__ = [
    "KINDS",
    "LayerSpec",
    "Mixer",
    "MixerConfig",
    "SequenceContext",
    "read_mixer",
    "register",
]


def register(cls: type[MixerConfig]) -> type[MixerConfig]:
    """Adds a kind for this process, from a notebook or another package: a decorator of its settings.

    Defining the class of a name again, as a cell does that runs twice, replaces it.

    Raises:
      ValueError: if the kind is another class's.
    """
    known = KINDS.get(cls.kind_name, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{cls.kind_name!r} is the kind of {known.__qualname__}: take another")
    KINDS[cls.kind_name] = cls
    return cls


def read_mixer(value: Any, path: str) -> MixerConfig:
    """Reads the settings of one mixer; `kind` says which dataclass they fill.

    Raises:
      ConfigError: where the kind is missing or unknown, or a setting is wrong.
    """

    def read_inner(cls: type[MixerConfig], settings: dict[str, Any]) -> None:
        for name in cls.holds_mixers:
            if hasattr(settings.get(name), "items"):
                inner = settings[name].items()
                settings[name] = {n: read_mixer(m, f"{path}.{name}.{n}") for n, m in inner}

    return read_kind(value, path, KINDS, "mixer", absent=ABSENT, prepare=read_inner)

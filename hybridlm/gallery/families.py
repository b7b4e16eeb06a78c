"""The families that mixers belong to, and their colours in drawings and on the page."""

from hybridlm.models.mixers.absent import NoMixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.base import MixerConfig
from hybridlm.models.mixers.delta import DeltaConfig
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.mamba2 import Mamba2Config
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.mixers.parallel import ParallelConfig
from hybridlm.models.mixers.short_conv import ShortConvConfig

#: Colours by family; those of Okabe and Ito where they suffice, told apart without red and green.
COLORS = {
    "full attention": "#0072B2",
    "windowed attention": "#56B4E9",
    "latent attention": "#7B5BC7",
    "sparse attention": "#CC79A7",
    "delta rule": "#D55E00",
    "state space": "#009E73",
    "linear recurrence": "#B8860B",
    "short convolution": "#E6AB02",
    "feed-forward alone": "#9A9A9A",
}


def families(mixer: MixerConfig) -> tuple[str, ...]:
    """The family of a mixer, or those of the branches of a mixer made of mixers."""
    if isinstance(mixer, ParallelConfig):
        return tuple(f for branch in mixer.branches.values() for f in families(branch))
    return (_family(mixer),)


def _family(mixer: MixerConfig) -> str:
    if isinstance(mixer, NoMixerConfig):
        return "feed-forward alone"
    if isinstance(mixer, DSAConfig):
        return "sparse attention"
    if isinstance(mixer, MLAConfig):
        return "latent attention"
    if isinstance(mixer, AttentionConfig):
        return "windowed attention" if mixer.window or mixer.chunk else "full attention"
    if isinstance(mixer, DeltaConfig):
        return "delta rule"
    if isinstance(mixer, ShortConvConfig):
        return "short convolution"
    if isinstance(mixer, Mamba2Config) or mixer.kind_name.startswith("mamba"):
        return "state space"
    # What is left either attends to chosen keys or keeps a state of fixed size.
    return "linear recurrence" if mixer.reach(2**20) is None else "sparse attention"


def css_name(family: str) -> str:
    """A family's name in style sheets: "full-attention"."""
    return family.replace(" ", "-")

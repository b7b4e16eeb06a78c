"""All probes by their names in `--probes`. A new probe is a file and a line here."""

from hybridlm.probes.gradients import GRADIENT_INFLUENCE
from hybridlm.probes.heads import ENTROPY, HEADS, RETRIEVAL_HEADS
from hybridlm.probes.induction import INDUCTION_HEADS
from hybridlm.probes.linear import LAYER_PROBING
from hybridlm.probes.masking import HEAD_MASKING
from hybridlm.probes.probe import Probe
from hybridlm.probes.receptive_field import RECEPTIVE_FIELD
from hybridlm.probes.settings import ProbesConfig, ProbeSettings
from hybridlm.probes.slots import SLOT_SHARE
from hybridlm.probes.weights import QK_DISTANCE
from hybridlm.settings.registry import by_name, choose

PROBES: dict[str, Probe] = by_name(
    [
        RETRIEVAL_HEADS,
        ENTROPY,
        HEADS,
        INDUCTION_HEADS,
        QK_DISTANCE,
        GRADIENT_INFLUENCE,
        RECEPTIVE_FIELD,
        LAYER_PROBING,
        HEAD_MASKING,
        SLOT_SHARE,
    ]
)
#: The probes that may run during training; `probes.which` of a config may name them.
LIVE = {name: probe for name, probe in PROBES.items() if probe.live is not None}


def chosen_probes(settings: ProbeSettings) -> list[Probe]:
    """The probes that the settings name, in that order. Raises UserError for an unknown name."""
    return choose(PROBES, settings.probes, "probes")


def live_probes(config: ProbesConfig) -> list[Probe]:
    """The probes that a run's config names, in the registry's order."""
    return [probe for name, probe in LIVE.items() if name in config.which]

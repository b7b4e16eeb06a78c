"""The mixers of `small.MIXERS` as subjects of the laws in `kernels_pallas.testing`."""

import numpy as np
import small

from hybridlm.models.mixers import laws, read_mixer
from kernels_pallas.testing import Subject


def mixer_subject(name: str, width: int = 32) -> Subject:
    """The mixer `name` of `small.MIXERS`, with parameters drawn near their initial values."""
    return laws.mixer_subject(read_mixer(small.MIXERS[name], name), width, name)


def seeded(name: str, seed: int) -> tuple[Subject, np.random.Generator]:
    """The subject and a generator for one law."""
    return mixer_subject(name), np.random.default_rng(seed)

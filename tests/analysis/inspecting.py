"""Small random models, opened to look inside."""

import numpy as np

from hybridlm.analysis import Inspected
from hybridlm.data.tokenizers import NoTokenizer
from hybridlm.runs import OpenedModel
from tests.models import small


def inspected(pattern: str, seed: int = 0, dtype="float32", **settings) -> Inspected:
    """A model of the mixers of `small.MIXERS` in `pattern`, with perturbed parameters."""
    model, params = small.make(small.model_config(pattern, **settings), seed, dtype)
    opened = OpenedModel(None, model, params, NoTokenizer("nowhere"), None, {}, None)
    return Inspected(opened, dtype)


def packed(seed: int, batch: int = 2, time: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens, and the segment ids of random documents, some with padding at the end."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 40, (batch, time)), small.random_segments(rng, batch, time)

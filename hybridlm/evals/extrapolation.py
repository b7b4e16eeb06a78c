"""Changes a model's position settings, to evaluate it beyond its training context.

Three settings (`Extrapolation`) change global attention layers (those without window and chunk) and
leave the parameters as they are:

- `logit_scale` a: NoPE layers multiply their logits by log_a(t + a) at position t (SWAN-GPT, arXiv
  2504.08719; HyPE, arXiv 2601.22156);
- `rope_theta`: replaces the base of RoPE;
- `yarn`: applies YaRN (arXiv 2309.00071) with this factor, relative to the training length.

Layers with a window stay as they are: they meet no distance that they did not meet in training.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from hybridlm.errors import UserError
from hybridlm.evals.settings import Extrapolation
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.positional import TemperatureConfig, YarnConfig
from hybridlm.models.settings import ModelConfig
from hybridlm.settings.reader import Invalid


def extrapolated(config: ModelConfig, settings: Extrapolation, length: int) -> ModelConfig:
    """The model's settings after the extrapolation settings are applied.

    Args:
      length: tokens of a training sequence.

    Raises:
      UserError: if a setting applies to no layer.
    """
    applied: set[str] = set()
    mixers = {
        name: _mixer(mixer, settings, length, applied) for name, mixer in config.mixers.items()
    }
    for name, positions in (("logit_scale", "NoPE"), ("rope_theta", "RoPE"), ("yarn", "RoPE")):
        if getattr(settings, name) is not None and name not in applied:
            raise UserError(f"--{name}: the model has no global attention layer with {positions}")
    return dataclasses.replace(config, mixers=mixers) if applied else config


def _mixer(mixer: Any, settings: Extrapolation, length: int, applied: set[str]) -> Any:
    branches = getattr(mixer, "branches", None)
    if branches:
        changed = {n: _mixer(b, settings, length, applied) for n, b in branches.items()}
        return dataclasses.replace(mixer, branches=changed)
    if not isinstance(mixer, AttentionConfig) or mixer.window or mixer.chunk:
        return mixer
    if mixer.rope is None:
        if settings.logit_scale is None:
            return mixer
        applied.add("logit_scale")
        return dataclasses.replace(mixer, temperature=TemperatureConfig(settings.logit_scale))
    rope = mixer.rope
    if settings.rope_theta is not None:
        applied.add("rope_theta")
        with _option("rope_theta"):
            rope = dataclasses.replace(rope, theta=settings.rope_theta)
    if settings.yarn is not None:
        applied.add("yarn")
        with _option("yarn"):
            rope = dataclasses.replace(rope, yarn=YarnConfig(settings.yarn, length))
    return dataclasses.replace(mixer, rope=rope)


@contextlib.contextmanager
def _option(name: str) -> Iterator[None]:
    """Says which option makes a mixer's settings invalid."""
    try:
        yield
    except Invalid as error:
        raise UserError(f"--{name} does not fit the model: its {error.field} {error}") from None

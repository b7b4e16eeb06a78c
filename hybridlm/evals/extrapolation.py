"""A model evaluated beyond its training context: what of its positions is set anew.

Three settings (`Extrapolation`) on global attention layers (those without window and chunk), with
the parameters untouched:

- `logit_scale` a: NoPE layers multiply their logits by log_a(t + a) at position t (SWAN-GPT, arXiv
  2504.08719; HyPE, arXiv 2601.22156);
- `rope_theta`: another base of RoPE;
- `yarn`: YaRN (arXiv 2309.00071) by this factor, over the length of training.

Layers with a window stay as they are: none of their distances is new to them.
"""

import dataclasses
from typing import Any

from hybridlm.errors import UserError
from hybridlm.evals.settings import Extrapolation
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.positional import TemperatureConfig, YarnConfig
from hybridlm.models.settings import ModelConfig


def extrapolated(config: ModelConfig, how: Extrapolation, length: int) -> ModelConfig:
    """The model's settings with these in place.

    Args:
      length: tokens of a sequence in training.

    Raises:
      UserError: where no layer has what a setting is about.
    """
    applied: set[str] = set()
    mixers = {name: _mixer(mixer, how, length, applied) for name, mixer in config.mixers.items()}
    for name, about in (("logit_scale", "NoPE"), ("rope_theta", "RoPE"), ("yarn", "RoPE")):
        if getattr(how, name) is not None and name not in applied:
            raise UserError(f"--{name}: the model has no global attention layer with {about}")
    return dataclasses.replace(config, mixers=mixers) if applied else config


def _mixer(mixer: Any, how: Extrapolation, length: int, applied: set[str]) -> Any:
    branches = getattr(mixer, "branches", None)
    if branches:
        changed = {n: _mixer(b, how, length, applied) for n, b in branches.items()}
        return dataclasses.replace(mixer, branches=changed)
    if not isinstance(mixer, AttentionConfig) or mixer.window or mixer.chunk:
        return mixer
    if mixer.rope is None:
        if how.logit_scale is None:
            return mixer
        applied.add("logit_scale")
        return dataclasses.replace(mixer, temperature=TemperatureConfig(how.logit_scale))
    rope = mixer.rope
    if how.rope_theta is not None:
        applied.add("rope_theta")
        rope = dataclasses.replace(rope, theta=how.rope_theta)
    if how.yarn is not None:
        applied.add("yarn")
        rope = dataclasses.replace(rope, yarn=YarnConfig(how.yarn, length))
    return dataclasses.replace(mixer, rope=rope)

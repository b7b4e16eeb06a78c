"""A model evaluated beyond its training context: what of its positions is set anew.

Three settings, on global attention layers (those without window and chunk), parameters untouched:

- `logit_scale` a: NoPE layers multiply their logits by log_a(t + a) at position t (SWAN-GPT, arXiv
  2504.08719; HyPE, arXiv 2601.22156);
- `rope_theta`: another base of RoPE;
- `yarn`: YaRN (arXiv 2309.00071) by this factor, over the length of training.

Layers with a window stay as they are: none of their distances is new to them.
"""

import dataclasses
from typing import Any

from hybridlm.errors import UserError
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.positional import TemperatureConfig, YarnConfig
from hybridlm.models.settings import ModelConfig


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """The settings; None leaves a model as it was trained."""

    logit_scale: float | None = None
    rope_theta: float | None = None
    yarn: float | None = None

    def check(self) -> None:
        """Raises UserError for settings that mean nothing."""
        for name, least in (("logit_scale", 1), ("rope_theta", 0), ("yarn", 1)):
            value = getattr(self, name)
            if value is not None and not value > least:
                raise UserError(f"--{name} must exceed {least}, not {value}")
        if self.rope_theta is not None and self.yarn is not None:
            raise UserError("--rope_theta and --yarn both stretch RoPE: give one of them")

    def apply(self, config: ModelConfig, length: int) -> ModelConfig:
        """The model's settings with these in place.

        Args:
          length: tokens of a sequence in training.

        Raises:
          UserError: where no layer has what a setting is about.
        """
        self.check()
        applied: set[str] = set()
        mixers = {
            name: self._mixer(mixer, length, applied) for name, mixer in config.mixers.items()
        }
        for name, about in (("logit_scale", "NoPE"), ("rope_theta", "RoPE"), ("yarn", "RoPE")):
            if getattr(self, name) is not None and name not in applied:
                raise UserError(f"--{name}: the model has no global attention layer with {about}")
        return dataclasses.replace(config, mixers=mixers) if applied else config

    def _mixer(self, mixer: Any, length: int, applied: set[str]) -> Any:
        branches = getattr(mixer, "branches", None)
        if branches:
            changed = {n: self._mixer(b, length, applied) for n, b in branches.items()}
            return dataclasses.replace(mixer, branches=changed)
        if not isinstance(mixer, AttentionConfig) or mixer.window or mixer.chunk:
            return mixer
        if mixer.rope is None:
            if self.logit_scale is None:
                return mixer
            applied.add("logit_scale")
            return dataclasses.replace(mixer, temperature=TemperatureConfig(self.logit_scale))
        rope = mixer.rope
        if self.rope_theta is not None:
            applied.add("rope_theta")
            rope = dataclasses.replace(rope, theta=self.rope_theta)
        if self.yarn is not None:
            applied.add("yarn")
            rope = dataclasses.replace(rope, yarn=YarnConfig(self.yarn, length))
        return dataclasses.replace(mixer, rope=rope)

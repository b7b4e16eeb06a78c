"""The arms of the experiment: the mixer of the efficient layers, and the schedule of its window.

Models have layers that alternate efficient and full attention ("local full local full"). Arms
that differ only in windows share one program, because the window is an input of the step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.large_window_laziness import stream
from experiments.large_window_laziness.stream import CopyTask
from hybridlm.models.settings import ModelConfig
from hybridlm.train.settings import OptimizerConfig, TrainConfig

SEEDS = (0, 1, 2)


class ExperimentScale(NamedTuple):
    """A task, with the size and the training budget of its arms.

    Attributes:
      windows: of the arms; the last one spans a whole sequence.
      width, heads: of the models.
      batch: sequences per step.
      every: steps between two measurements.
      core, long: steps of the two budgets.
      depth, mlp: layers, and hidden size of an MLP, of the models.
      lr: learning rate.
    """

    task: CopyTask
    windows: tuple[int, ...]
    width: int
    heads: int
    batch: int
    every: int
    core: int
    long: int
    depth: int = 4
    mlp: int = 64
    lr: float = 3e-3

    @property
    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(
            lr=self.lr, schedule="constant", warmup_steps=50, weight_decay=0.0, b2=0.98
        )

    @property
    def small(self) -> int:
        """The first window of the cures."""
        return self.windows[0]

    @property
    def large(self) -> int:
        """The last window of the cures."""
        return self.windows[-2]


MAIN = ExperimentScale(stream.MAIN, (4, 16, 64, 128, 256), 64, 2, 8, 100, 1500, 6000)
PILOT = ExperimentScale(stream.PILOT, (4, 16, 32, 64, 96), 32, 1, 16, 50, 900, 3000)
#: 100M parameters, for a GPU; it has not been run.
LARGE = ExperimentScale(
    stream.LARGE, (16, 64, 256, 512, 1024), 768, 12, 32, 100, 2000, 8000, 14, 2048, 5e-4
)

Window = Callable[[int, int, int], int]  # (step, steps, seed) -> the window of that step


def constant(window: int) -> Window:
    """The same window at all steps."""
    return lambda step, steps, seed: window


def curriculum(first: int, last: int, share: float = 0.5) -> Window:
    """Doubles the window from `first` to `last`, at equal intervals in this share of the steps."""
    doublings = int(np.log2(last // first))

    def window(step: int, steps: int, seed: int) -> int:
        done = int(step / max(share * steps, 1) * doublings)
        return min(first * 2**done, last)

    return window


def stochastic(small: int, large: int, share: float = 0.5) -> Window:
    """`small` with probability `share` at each step, else `large` (SWAX, arXiv 2509.24552)."""

    def window(step: int, steps: int, seed: int) -> int:
        return small if np.random.default_rng([17, seed, step]).random() < share else large

    return window


def dropout(large: int, share: float = 0.5) -> Window:
    """`large`, but with probability `share` at each step only a token's own key."""
    return stochastic(1, large, share)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One condition of the experiment; its runs differ in their seeds.

    Attributes:
      scale: the task, batch and measurements.
      local: settings of the mixer in the efficient layers.
      nope: whether the full layers have no RoPE.
      final: the window in measurements and after training; None for a recurrence.
      window: the schedule of the window in training.
      steps: the budget.
    """

    name: str
    scale: ExperimentScale
    local: Mapping[str, Any]
    nope: bool
    final: int | None
    window: Window
    steps: int

    def model(self) -> ModelConfig:
        """The model's settings, equal for all arms that share a program."""
        full = dict(kind="attention", heads=self.scale.heads, rope=None if self.nope else {})
        return ModelConfig(
            width=self.scale.width,
            depth=self.scale.depth,
            pattern="local full",
            vocab_size=self.scale.task.vocab,
            mixers=dict(local=dict(self.local), full=full),
            mlp=dict(kind="swiglu", hidden=self.scale.mlp),
            # Embeddings and layer outputs of about the same size.
            init_std=self.scale.width**-0.5,
            embedding_scale=2.0,
        )

    def train(self) -> TrainConfig:
        return TrainConfig(steps=self.steps)


def recurrent(scale: ExperimentScale) -> dict[str, dict[str, Any]]:
    """Settings of the recurrent mixers that replace the window, by name."""
    return {
        "gdn": dict(kind="gdn", heads=scale.heads),
        "lightning": dict(kind="lightning", heads=scale.heads),
        "mamba2": dict(kind="mamba2", head_dim=32, state_dim=32),
        "nha": dict(kind="nha", heads=scale.heads, slots=16, window=16),
    }


def sets(scale: ExperimentScale) -> dict[str, list[Arm]]:
    """The arms of a scale by set: "core" (the windows), "cures", "recurrent" and "long"."""
    small, large, none = scale.small, scale.large, scale.windows[-1]
    found: dict[str, list[Arm]] = {"core": [], "cures": [], "recurrent": [], "long": []}
    for nope in (False, True):
        ending = "nope" if nope else "rope"
        attention = dict(kind="attention", heads=scale.heads, window=none)

        def arm(name, final, window, steps, local=attention, nope=nope, ending=ending):
            return Arm(f"{name}-{ending}", scale, local, nope, final, window, steps)

        for width in scale.windows:
            name = "full" if width == none else f"w{width}"
            found["core"].append(arm(name, width, constant(width), scale.core))
            if width in (small, large, none):
                found["long"].append(arm(f"{name}-long", width, constant(width), scale.long))
        for name, window in (
            ("curriculum", curriculum(small, large)),
            ("stochastic", stochastic(small, large)),
            ("dropout", dropout(large)),
        ):
            found["cures"].append(arm(name, large, window, scale.core))
        for name, local in recurrent(scale).items():
            found["recurrent"].append(arm(name, None, constant(none), scale.core, local))
    return found


SCALES = {scale.task.name: scale for scale in (MAIN, PILOT, LARGE)}
SETS = {name: sets(scale) for name, scale in SCALES.items()}
ARMS = {name: {a.name: a for arms in s.values() for a in arms} for name, s in SETS.items()}

"""Every arm of the experiment: what stands in the efficient layers, and how its window changes.

Models have 4 layers, efficient and full attention in turn ("local full local full"). Arms that
differ in windows alone are one program: the window is an input of the step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.large_window_laziness import stream
from hybridlm.config.schema import MLPConfig, ModelConfig, OptimizerConfig, TrainConfig

WIDTH, DEPTH, HEADS, MLP = 32, 4, 1, 64
FULL = stream.LENGTH  # a window that is none
WINDOWS = (4, 16, 64, 128, FULL)
LARGE = 128  # what the cures end with
BATCH = 8  # sequences a step
OPTIMIZER = OptimizerConfig(
    lr=3e-3, schedule="constant", warmup_steps=50, weight_decay=0.0, b2=0.98
)

Window = Callable[[int, int, int], int]  # (step, steps, seed) -> the window of that step


def constant(window: int) -> Window:
    """The same at all steps."""
    return lambda step, steps, seed: window


def curriculum(first: int, last: int, share: float = 0.5) -> Window:
    """From `first` to `last` in doublings of equal length over this share of the steps."""
    doublings = int(np.log2(last // first))

    def window(step: int, steps: int, seed: int) -> int:
        done = int(step / max(share * steps, 1) * doublings)
        return min(first * 2**done, last)

    return window


def stochastic(small: int, large: int, share: float = 0.5) -> Window:
    """`small` in this share of the steps, drawn for each, else `large` (SWAX, arXiv 2509.24552)."""

    def window(step: int, steps: int, seed: int) -> int:
        return small if np.random.default_rng([17, seed, step]).random() < share else large

    return window


def dropout(large: int, share: float = 0.5) -> Window:
    """`large`, but in this share of the steps a token's own key alone."""
    return stochastic(1, large, share)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the experiment; its runs differ in seeds.

    Attributes:
      local: settings of the mixer in the efficient layers.
      nope: no RoPE in the full layers.
      final: window that the trained model has, and is measured with; None for a recurrence.
      window: what it trains with.
      steps: budget.
    """

    name: str
    local: Mapping[str, Any]
    nope: bool
    final: int | None
    window: Window
    steps: int

    def model(self) -> ModelConfig:
        """The same for all arms that share a program."""
        rope = None if self.nope else {}
        full = dict(kind="attention", heads=HEADS, rope=rope)
        return ModelConfig(
            width=WIDTH, depth=DEPTH, pattern="local full", vocab_size=stream.VOCAB,
            mixers=dict(local=dict(self.local), full=full), mlp=MLPConfig(hidden=MLP),
            # Embeddings of about the size of what a layer adds: neither drowns the other.
            init_std=WIDTH**-0.5, embedding_scale=2.0,
        )  # fmt: skip

    def train(self) -> TrainConfig:
        return TrainConfig(steps=self.steps)


ATTENTION = dict(kind="attention", heads=HEADS, window=FULL)
RECURRENT = {
    "gdn": dict(kind="gdn", heads=HEADS),
    "lightning": dict(kind="lightning", heads=HEADS),
    "mamba2": dict(kind="mamba2", head_dim=32, state_dim=32),
    "nha": dict(kind="nha", heads=HEADS, slots=16, window=16),
}
CORE_STEPS, LONG_STEPS = 2000, 8000
SEEDS = (0, 1, 2)


def windowed(name: str, nope: bool, final: int, window: Window, steps: int) -> Arm:
    return Arm(f"{name}-{'nope' if nope else 'rope'}", ATTENTION, nope, final, window, steps)


def _positions(make: Callable[[bool], list[Arm]]) -> list[Arm]:
    return make(False) + make(True)


def _name(window: int) -> str:
    return "full" if window == FULL else f"w{window}"


CORE = _positions(
    lambda nope: [windowed(_name(w), nope, w, constant(w), CORE_STEPS) for w in WINDOWS]
)
LONG = _positions(
    lambda nope: [
        windowed(f"{_name(w)}-long", nope, w, constant(w), LONG_STEPS) for w in (4, LARGE, FULL)
    ]
)
RECURRENCES = _positions(
    lambda nope: [
        Arm(
            f"{name}-{'nope' if nope else 'rope'}", local, nope, None, constant(FULL), CORE_STEPS
        )
        for name, local in RECURRENT.items()
    ]
)  # fmt: skip
CURES = _positions(
    lambda nope: [
        windowed("curriculum", nope, LARGE, curriculum(4, LARGE), CORE_STEPS),
        windowed("stochastic", nope, LARGE, stochastic(4, LARGE), CORE_STEPS),
        windowed("dropout", nope, LARGE, dropout(LARGE), CORE_STEPS),
    ]
)
SETS = {"core": CORE, "cures": CURES, "recurrent": RECURRENCES, "long": LONG}
ARMS = {arm.name: arm for arms in SETS.values() for arm in arms}

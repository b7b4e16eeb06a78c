"""The arms of the experiment: the mixer of the efficient layers, and the schedule of its window.

Models begin with a layer `near`, attention over 4 tokens, which all arms share: it can look up the
previous tokens, so no arm has to form that circuit in its own efficient layers first. Then (local,
full) alternate. Arms that differ only in windows share one program, because the window is an input
of the step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.large_window_laziness import stream
from experiments.large_window_laziness.near import NearConfig
from experiments.large_window_laziness.stream import CopyTask
from hybridlm.models.settings import ModelConfig
from hybridlm.train.settings import OptimizerConfig, TrainConfig

NEAR = 4  # tokens that the shared first layer sees
LENGTHS = (1, 2, 4)  # of the sequences in measurements at the end, over the length in training
POSITIONS = ("rope", "nope")  # of the full layers
PREFIXES = {
    "near": lambda heads: dict(kind="attention", heads=heads, window=NEAR),
    "conv": lambda heads: dict(kind="short_conv", conv_width=NEAR),
}


class ExperimentScale(NamedTuple):
    """A task, with the size and the training budget of its arms.

    Attributes:
      windows: of the arms; the last one, a sequence's length, stands for full attention.
      width, heads, mlp: of the models.
      depth: layers, without the prefix.
      batch: sequences per step.
      every: steps between two measurements.
      core, long: steps of the two budgets.
      after: steps that a run of the core budget goes on after retrieval is confirmed.
      lrs: the learning rate by positions of the full layers.
    """

    task: CopyTask
    windows: tuple[int, ...]
    width: int
    heads: int
    mlp: int
    depth: int
    batch: int
    every: int
    core: int
    long: int
    after: int
    lrs: Mapping[str, float]

    @property
    def small(self) -> int:
        return self.windows[0]

    @property
    def large(self) -> int:
        """The largest window that is shorter than a sequence."""
        return self.windows[-2]

    @property
    def whole(self) -> int:
        """The window of full attention, which spans the longest sequences of all measurements."""
        return max(LENGTHS) * self.task.length


MAIN = ExperimentScale(
    stream.MAIN,
    (4, 8, 16, 32, 64),
    64,
    2,
    64,
    4,
    8,
    50,
    5000,
    6000,
    300,
    dict(rope=3e-3, nope=1e-3),
)
#: 100M parameters, for a GPU; it has not been run.
LARGE = ExperimentScale(
    stream.LARGE,
    (16, 64, 256, 512, 1024),
    768,
    12,
    2048,
    14,
    32,
    100,
    2000,
    8000,
    2000,
    dict(rope=5e-4, nope=5e-4),
)

#: Separate seeds: no rate is chosen on the runs that it is then tested on.
SEEDS, SWEEP_SEEDS = tuple(range(10)), (100, 101)
CONTROLS, CONTROL_SEEDS = ("alone", "far", "conv"), 5  # sets, and how many of `SEEDS` they have
RATES = dict(rope=(5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3), nope=(5e-4, 1e-3, 2e-3, 3e-3))

CURRICULUM = 0.5  # share of the budget in which a curriculum reaches its last window

Window = Callable[[int, int, int], int]  # (step, steps, seed) -> the window of that step


def constant(window: int) -> Window:
    """The same window at all steps."""
    return lambda step, steps, seed: window


def curriculum(first: int, last: int, share: float = CURRICULUM) -> Window:
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
    """`large`, but with probability `share` at each step only a token's own key.

    A step has one window for all layers; `Arm.keeps_near` exempts the shared first one.
    """
    return stochastic(1, large, share)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One condition of the experiment; its runs differ in their seeds.

    Attributes:
      name: ends in "-rope" or "-nope", the positions of the full layers.
      local: settings of the mixer in the efficient layers.
      final: the window in measurements and after training; None for a recurrence.
      window: the schedule of the window in training.
      steps: the budget.
      stops: whether a run ends `scale.after` steps after retrieval is confirmed and the schedule of the
        window has ended.
      scheduled: the share of the budget in which the schedule changes the window for good; 0 for a
        schedule without an end.
      keeps_near: whether windows below `NEAR` leave the shared first layer as it is.
      prefix: the shared first layer, a name of `PREFIXES`, or "" for none.
      task: the stream it trains on; measurements use the scale's.
      lr: the learning rate.
      begins_with: the arm whose run this one goes on with, if that one is there.
    """

    name: str
    scale: ExperimentScale
    local: Mapping[str, Any]
    final: int | None
    window: Window
    steps: int
    lr: float
    stops: bool = True
    scheduled: float = 0.0
    keeps_near: bool = False
    prefix: str = "near"
    far_only: bool = False
    begins_with: str | None = None

    @property
    def positions(self) -> str:
        return self.name.rpartition("-")[2]

    @property
    def task(self) -> CopyTask:
        task = self.scale.task
        return task._replace(closest=task.bins[-1][0]) if self.far_only else task

    @property
    def sees_all(self) -> bool:
        """Whether the efficient layers see whole sequences, as full attention does."""
        return self.final is not None and self.final >= self.scale.task.length

    @property
    def searched(self) -> tuple[int, ...]:
        """The layers that see whole sequences: among their heads the best ones are sought."""
        names = ("local", "full") if self.sees_all else ("full",)
        return tuple(i for i, name in enumerate(self.model().layout.names) if name in names)

    @property
    def stack_reach(self) -> int:
        """Tokens that reach a query through the efficient layers alone, its own included.

        Only layers below the last full one can serve a retrieval: this counts all of them.
        """
        length = self.scale.task.length
        if self.final is None:
            return length
        reach = (self.final - 1) * (self.scale.depth // 2) + (NEAR - 1) * bool(self.prefix) + 1
        return min(reach, length)

    def model(self) -> ModelConfig:
        """The model's settings, equal for all arms that share a program."""
        rope = {} if self.positions == "rope" else None
        mixers: dict[str, Any] = dict(
            local=dict(self.local),
            full=dict(kind="attention", heads=self.scale.heads, rope=rope),
        )
        if self.prefix:
            mixers[self.prefix] = PREFIXES[self.prefix](self.scale.heads)
        if self.keeps_near:
            mixers["near"] = NearConfig(heads=self.scale.heads, window=NEAR)
        return ModelConfig(
            width=self.scale.width,
            depth=self.scale.depth + bool(self.prefix),
            prefix=self.prefix,
            pattern="local full",
            vocab_size=self.scale.task.vocab,
            mixers=mixers,
            mlp=dict(kind="swiglu", hidden=self.scale.mlp),
            # Embeddings and layer outputs of about the same size.
            init_std=self.scale.width**-0.5,
            embedding_scale=2.0,
        )

    def optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(
            lr=self.lr, schedule="constant", warmup_steps=50, weight_decay=0.0, b2=0.98
        )

    def train(self) -> TrainConfig:
        return TrainConfig(steps=self.steps)


def recurrent(scale: ExperimentScale) -> dict[str, dict[str, Any]]:
    """Settings of the recurrent mixers that replace the window, by name."""
    found = {
        "gdn": dict(kind="gdn", heads=scale.heads),
        "lightning": dict(kind="lightning", heads=scale.heads),
        "mamba2": dict(kind="mamba2", head_dim=32, state_dim=32),
    }
    for window in (scale.windows[0], scale.windows[2]):
        for slots in (scale.windows[0], scale.windows[2]):
            found[f"nha{window}x{slots}"] = dict(
                kind="nha", heads=scale.heads, window=window, slots=slots
            )
    return found


def sets(scale: ExperimentScale) -> dict[str, list[Arm]]:
    """The arms of a scale by set.

    "core": the windows. Controls: "alone" has no shared first layer, "far" copies only at the
    largest distances, "conv" a short convolution as the shared first layer. "long": the smallest
    and the largest window to a fixed number of steps. "recurrent": recurrences and Native Hybrid
    Attention (window x slots) in place of the window. "cures": schedules that end at the largest
    window. "sweep": learning rates, on seeds of their own.
    """
    small, large, none = scale.small, scale.large, scale.windows[-1]
    names = ("core", "alone", "far", "conv", "long", "recurrent", "cures", "sweep")
    found: dict[str, list[Arm]] = {name: [] for name in names}
    attention = dict(kind="attention", heads=scale.heads, window=scale.whole)
    schedules: dict[str, dict[str, Any]] = {
        "curriculum": dict(window=curriculum(small, large), scheduled=CURRICULUM),
        "stochastic": dict(window=stochastic(small, large)),
        "dropout": dict(window=dropout(large), keeps_near=True),
    }
    for positions in POSITIONS:
        lr = scale.lrs[positions]

        def arm(name, final, window=None, local=attention, positions=positions, lr=lr, **options):
            schedule = constant(none if final is None else final) if window is None else window
            options = {"steps": scale.core, "lr": lr, **options}
            return Arm(f"{name}-{positions}", scale, local, final, schedule, **options)

        for width in scale.windows:
            name, final = ("full", scale.whole) if width == none else (f"w{width}", width)
            found["core"].append(arm(name, final))
            found["alone"].append(arm(f"{name}-alone", final, prefix=""))
            found["far"].append(arm(f"{name}-far", final, far_only=True))
            found["conv"].append(arm(f"{name}-conv", final, prefix="conv"))
            if width in (small, large):
                longer = dict(steps=scale.long, stops=False, begins_with=f"{name}-{positions}")
                found["long"].append(arm(f"{name}-long", width, **longer))
                for rate in RATES[positions]:
                    found["sweep"].append(arm(f"{name}-lr{rate:g}", width, lr=rate))
        for name, local in recurrent(scale).items():
            found["recurrent"].append(arm(name, None, local=local))
            if not name.startswith("nha"):
                found["conv"].append(arm(f"{name}-conv", None, local=local, prefix="conv"))
        for name, options in schedules.items():
            found["cures"].append(arm(name, large, **options))
    return found


def seeds_of(name: str, count: int | None = None) -> tuple[int, ...]:
    """The seeds of a set: as many as it has by plan, or `count`, and no more than there are."""
    if count is None and name in CONTROLS:
        count = CONTROL_SEEDS
    return (SWEEP_SEEDS if name == "sweep" else SEEDS)[:count]


SCALES = {scale.task.name: scale for scale in (MAIN, LARGE)}
SETS = {name: sets(scale) for name, scale in SCALES.items()}
ARMS = {name: {a.name: a for arms in s.values() for a in arms} for name, s in SETS.items()}

"""The settings of a run: its own of optimizer and loop, composed with the other packages'."""

import dataclasses
from typing import Any, Literal

from hybridlm.data.settings import DataConfig
from hybridlm.errors import ConfigError
from hybridlm.generation.settings import SampleConfig
from hybridlm.models.settings import ModelConfig
from hybridlm.parallel.settings import MeshConfig
from hybridlm.probes.settings import ProbesConfig
from hybridlm.runs.workdir import RunSettings
from hybridlm.settings.plain import to_dict
from hybridlm.settings.reader import read_dataclass, require

# Settings that change how a run is carried out and watched, not what it computes.
FREE_ON_RESUME = (
    "mesh.",
    "sample.",
    "probes.",
    "data.prefetch",
    "data.verify",
    "data.token_cache",
    "train.log_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.checkpoint_every",
    "train.tensorboard",
    "train.wandb",
    "train.abort_after",
    "train.hang_seconds",
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule.

    Attributes:
      lr: peak learning rate; warm-up is linear from 0 over `warmup_steps`.
      schedule: after warm-up "constant", "cosine" or "linear" to `final_lr_fraction` of the peak
        at the last step, or "wsd": constant, then linear over the last `decay_steps`.
      weight_decay: decoupled; on matrices only (never on norms, biases, gates or embeddings).
      clip_norm: global gradient norm above which gradients are scaled down; None for no clipping.
      b1, b2, eps: Adam's; for Muon those of the AdamW that serves embeddings, head, convolutions,
        norms and biases.
      muon_lr: Muon's own rate for the matrices of hidden layers; None takes `lr`.
    """

    lr: float
    name: Literal["adamw", "muon", "adafactor"] = "adamw"
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_lr_fraction: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    muon_lr: float | None = None

    def __post_init__(self):
        for name in ("lr", "eps"):
            require(getattr(self, name) > 0, name, f"must be positive, not {getattr(self, name)}")
        require(
            self.muon_lr is None or self.muon_lr > 0,
            "muon_lr",
            "must be positive, or None to take lr",
        )
        require(self.warmup_steps >= 0, "warmup_steps", "must be 0 or more")
        require(self.weight_decay >= 0, "weight_decay", "must be 0 or more")
        require(0 <= self.final_lr_fraction <= 1, "final_lr_fraction", "must lie in [0, 1]")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            "clip_norm",
            "must be positive, or None for no clipping",
        )
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, name, "must lie in [0, 1)")
        require(
            (self.decay_steps is not None) == (self.schedule == "wsd"),
            "decay_steps",
            'goes with schedule "wsd", and only with it',
        )
        require(
            self.decay_steps is None or self.decay_steps >= 1, "decay_steps", "must be 1 or more"
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Attributes:
      steps: optimizer steps in the whole run.
      accumulate: micro-batches a step; gradients are averaged over all their tokens.
      dtype: activations and matmuls; "auto" is bfloat16 on TPU and GPU, float32 on CPU.
        Parameters, optimizer state and statistics are always float32.
      remat: what the backward pass recomputes: "none", "dots" (keeps matmul results) or "full".
      log_every, eval_every, checkpoint_every: steps between two of them; the last step has all.
      eval_sequences: held-out sequences in one evaluation.
      keep_checkpoints: how many of the newest checkpoints stay.
      keep_every: additionally, checkpoints at multiples of this stay for good.
      spike_sigma: skip an update whose gradient norm lies this many standard deviations above
        its running mean (None: only non-finite ones are skipped).
      abort_after: end the run after this many skipped updates in a row.
      hang_seconds: end a process that is so long in one step, evaluation or save, saying where
        (None: never); the first evaluation compiles, too.
    """

    steps: int
    accumulate: int = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    log_every: int = 10
    eval_every: int = 100
    eval_sequences: int = 64
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    keep_every: int | None = None
    spike_sigma: float | None = None
    abort_after: int = 20
    hang_seconds: float | None = 3600.0
    tensorboard: bool = True
    wandb: str | None = None

    def __post_init__(self):
        for name in (
            "steps accumulate log_every eval_every eval_sequences checkpoint_every"
            " keep_checkpoints abort_after"
        ).split():
            require(
                getattr(self, name) >= 1, name, f"must be at least 1, not {getattr(self, name)}"
            )
        require(
            self.hang_seconds is None or self.hang_seconds > 0,
            "hang_seconds",
            f"must be positive, or None to wait for ever, not {self.hang_seconds}",
        )
        require(self.keep_every is None or self.keep_every >= 1, "keep_every", "must be 1 or more")
        require(
            self.spike_sigma is None or self.spike_sigma > 0,
            "spike_sigma",
            "must be positive, or None to skip only non-finite updates",
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    sample: SampleConfig = SampleConfig()
    probes: ProbesConfig = ProbesConfig()

    def __post_init__(self):
        train, data, optimizer = self.train, self.data, self.optimizer
        require(0 <= self.seed < 2**31, "seed", f"must lie in [0, 2^31), not {self.seed}")
        require(
            data.batch_size % train.accumulate == 0,
            "train.accumulate",
            f"is {train.accumulate} and does not divide data.batch_size {data.batch_size}",
        )
        require(
            optimizer.warmup_steps + (optimizer.decay_steps or 0) <= train.steps,
            "optimizer.warmup_steps",
            f"and decay_steps together exceed train.steps {train.steps}",
        )

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch_size * self.data.seq_len


def run_settings(config: Config) -> RunSettings:
    """The settings that a run's folder is held to when the run goes on."""
    return RunSettings(to_dict(config), FREE_ON_RESUME, _complete)


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    try:
        return to_dict(read_dataclass(Config, settings, ""))
    except ConfigError:  # of another version: compared as it stands
        return settings

"""The settings of a run: its own of optimizer and loop, composed with the other packages'."""

import dataclasses
from typing import Annotated, Any, Literal

from hybridlm.data.settings import DataConfig
from hybridlm.distill.settings import TeacherConfig
from hybridlm.errors import ConfigError
from hybridlm.generation.settings import SampleConfig
from hybridlm.models.settings import ModelConfig
from hybridlm.parallel.settings import MeshConfig
from hybridlm.probes.settings import ProbesConfig
from hybridlm.runs.workdir import RunSettings
from hybridlm.settings.bounds import (
    Above,
    Between,
    Epsilon,
    IsLocalPath,
    IsPath,
    NonNegativeFloat,
    NonNegativeInt,
    NotEmpty,
    PositiveFloat,
    PositiveInt,
    settings,
)
from hybridlm.settings.names import nearest
from hybridlm.settings.plain import to_dict
from hybridlm.settings.reader import read_dataclass, require
from hybridlm.train import schedule

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
    "train.compilation_cache",
    "teacher.path",  # it may move; its parameters are compared
    "train.compiler_options.",  # as the mesh, they change rounding and no formula
)


@settings
class LrMultiplier:
    """A factor on the learning rate of some parameters.

    Attributes:
      parameters: globs over parameter names (see "Parameters by name" in docs/runs.md).
      factor: on the learning rate, and so on the weight decay that is times the learning rate.
    """

    parameters: Annotated[str, NotEmpty("is empty: name parameters, e.g. 'head|*.gate'")]
    factor: Annotated[float, Above(0, note="to freeze parameters, name them in optimizer.freeze")]


@settings
class OptimizerConfig:
    """Optimizer and learning-rate schedule.

    Attributes:
      lr: peak learning rate; warm-up is linear from 0 over `warmup_steps`.
      name: "adamw" (arXiv 1711.05101), "muon" (github.com/KellerJordan/Muon) or "adafactor"
        (arXiv 1804.04235, with `lr` as its rate).
      schedule: after warm-up "constant", "cosine" or "linear" to `final_lr_fraction` of the peak
        at the last step, or "wsd": constant, then linear over the last `decay_steps`.
      warmup_steps: optimizer steps of the warm-up; 0 for none. The peak is reached at its last step,
        and if that is the run's last, there is no decay.
      decay_steps: optimizer steps of the decay at the end of a "wsd" schedule.
      final_lr_fraction: learning rate of the last step over `lr`, with all schedules but "constant".
      weight_decay: decoupled weight decay, times the learning rate; on the kernels of linear maps
        (of gates and of an untied head too) and of convolutions, and on nothing else: not on norms,
        biases, embeddings, decay rates or sinks.
      clip_norm: global gradient norm above which gradients are scaled down; None for no clipping.
      b1: decay per step of the mean gradient in Adam (arXiv 1412.6980), and in the AdamW that Muon
        leaves embeddings, head, convolutions, norms and biases to; not in Adafactor.
      b2: decay per step of the mean squared gradient, of the same optimizers.
      eps: what Adam adds to the root of the mean squared gradient; smaller numbers than the bound
        are 0 in float32.
      muon_lr: Muon's own rate for the matrices of hidden layers; None takes `lr`.
      freeze: globs over the names of parameters that keep their initial values (see "Parameters by
        name" in docs/runs.md); they have no weight decay, no part in the gradient norm and no
        memory for gradients and moments. Empty for none.
      lr_multipliers: factors on the learning rate (and on `muon_lr`) by globs over parameter names;
        of several that match a parameter, the first counts.
    """

    lr: PositiveFloat
    name: Literal["adamw", "muon", "adafactor"] = "adamw"
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    decay_steps: PositiveInt | None = None
    final_lr_fraction: Annotated[float, Between(0, 1)] = 0.1
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: Annotated[float, Above(0, none="for no clipping")] | None = 1.0
    b1: Annotated[float, Between(0, 1, high_open=True)] = 0.9
    b2: Annotated[float, Between(0, 1, high_open=True)] = 0.95
    eps: Epsilon = 1e-8
    muon_lr: Annotated[float, Above(0, none="to take lr")] | None = None
    freeze: str = ""
    lr_multipliers: tuple[LrMultiplier, ...] = ()

    def __post_init__(self):
        require(
            (self.decay_steps is not None) == (self.schedule == "wsd"),
            "decay_steps",
            'goes with schedule "wsd", and only with it',
        )


CompilerOption = bool | int | float | str


@settings
class CompilerOptions:
    """Options of XLA for the training step, under XLA's names; other platforms' have no effect.

    For example, `c.train.compiler_options.tpu = {"xla_tpu_scoped_vmem_limit_kib": 65_536}`. An
    option that the compiler refuses ends the command with one sentence.

    Attributes:
      tpu: for TPUs.
      gpu: for GPUs.
      cpu: for CPUs.
    """

    tpu: dict[str, CompilerOption] = dataclasses.field(default_factory=dict)
    gpu: dict[str, CompilerOption] = dataclasses.field(default_factory=dict)
    cpu: dict[str, CompilerOption] = dataclasses.field(default_factory=dict)

    @staticmethod
    def field(platform: str) -> str:
        """The name of the field for a device's platform; those of GPUs are "cuda" and "rocm"."""
        return platform if platform in ("tpu", "cpu") else "gpu"

    def of(self, platform: str) -> dict[str, CompilerOption]:
        """The options for a device's platform."""
        return getattr(self, self.field(platform))


@settings
class TrainConfig:
    """The training loop.

    Attributes:
      steps: optimizer steps in the whole run.
      accumulate: micro-batches a step; gradients are averaged over all their tokens.
      dtype: activations and matmuls; "auto" is bfloat16 on TPU and GPU, float32 on CPU.
        Parameters, optimizer state and statistics are always float32.
      reduce_dtype: in which the devices of a mesh send each other kernels' gradients and add them;
        "bfloat16" halves what is sent.
      remat: what the backward pass recomputes: "none", "dots" (keeps matmul results), "full" (keeps
        each layer's input) or "unit" (keeps the input of each repeat of the pattern: less in deep
        models, but the activations of all layers of a repeat exist at a time).
      log_every: optimizer steps between two log lines; the last step has one, too.
      eval_every: optimizer steps between two evaluations; the last step has one, too.
      eval_sequences: held-out sequences in one evaluation.
      checkpoint_every: optimizer steps between two checkpoints; the last step has one, too.
      keep_checkpoints: how many of the newest checkpoints stay.
      keep_every: additionally, checkpoints at multiples of this stay for good.
      spike_sigma: skip an update whose gradient norm lies this many standard deviations above
        its running mean (None: only non-finite ones are skipped).
      ema_decay: decay per update of a moving average of the parameters, which is evaluated beside
        them and which `--weights ema` opens; without bias to the initial values, as Adam's moments
        (arXiv 1412.6980, section 3). None for none.
      abort_after: end the run after this many skipped updates in a row.
      hang_seconds: end a process that is so long in one step, evaluation or save, saying where
        (None: never); the first evaluation compiles, too.
      tensorboard: write TensorBoard events into the workdir.
      wandb: Weights & Biases project to log to; None for none.
      compilation_cache: folder where compiled programs are kept for later starts; "auto" is the
        user's (`~/.cache/hybridlm/compiled`), "off" is none.
      compiler_options: how XLA compiles the training step, by platform.
    """

    steps: PositiveInt
    accumulate: PositiveInt = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full", "unit"] = "none"
    log_every: PositiveInt = 10
    eval_every: PositiveInt = 100
    eval_sequences: PositiveInt = 64
    checkpoint_every: PositiveInt = 100
    keep_checkpoints: PositiveInt = 2
    keep_every: PositiveInt | None = None
    spike_sigma: Annotated[float, Above(0, none="to skip only non-finite updates")] | None = None
    ema_decay: (
        Annotated[float, Between(0, 1, low_open=True, high_open=True, none="for no average")] | None
    ) = None
    abort_after: PositiveInt = 20
    hang_seconds: Annotated[float, Above(0, none="to wait for ever")] | None = 3600.0
    tensorboard: bool = True
    wandb: (
        Annotated[str, NotEmpty("is empty: name a project, or set it to None for none")] | None
    ) = None
    compilation_cache: Annotated[str, NotEmpty(), IsLocalPath()] = "auto"
    compiler_options: CompilerOptions = CompilerOptions()


@settings
class InitConfig:
    """The run or model folder whose parameters a new run begins with.

    Parameters are matched by layer and name ("layers.3.mixer.q.kernel"), whatever the mixers are
    called and however layers repeat. A larger vocabulary keeps the old rows of the embedding and
    the old columns of the head; new ones start fresh. A run reads its source once, at its first
    start.

    Attributes:
      path: the workdir or the model folder.
      step: of the run's checkpoint; None is the newest.
      optimizer: take the optimizer's state too; what starts fresh has a moment of 0.
      keep_step: count steps, and the batches of the data, on from the source's step; needs
        `optimizer`. Otherwise the run begins at step 0.
      fresh: names of parameters that start fresh, or that are left out if only the source has
        them; globs with "|" between, e.g. "head|*.gate".
    """

    path: Annotated[str, NotEmpty(), IsPath()]
    step: NonNegativeInt | None = None
    optimizer: bool = False
    keep_step: bool = False
    fresh: str = ""

    def __post_init__(self):
        require(
            self.optimizer or not self.keep_step,
            "keep_step",
            "needs init.optimizer=True: steps can be counted on only with the optimizer's state",
        )


@settings
class Config:
    """Everything that a run depends on.

    Attributes:
      model: the model's architecture and initialisation.
      data: what is read, and how it becomes batches.
      train: the training loop.
      optimizer: the optimizer and the learning-rate schedule.
      seed: all random choices of a run follow from it: initial parameters, the order of the training
        data, probes' prompts and the sampled text.
      mesh: how devices share the work.
      sample: the text generated at the end.
      probes: what is looked at inside the model while it trains.
      init: the run or model folder whose parameters it begins with; None for a new model.
      teacher: the model that the run learns from; None to learn from the data alone.
    """

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    seed: Annotated[int, Between(0, 2**31, high_open=True)] = 0
    mesh: MeshConfig = MeshConfig()
    sample: SampleConfig = SampleConfig()
    probes: ProbesConfig = ProbesConfig()
    init: InitConfig | None = None
    teacher: TeacherConfig | None = None

    def __post_init__(self):
        train, data, optimizer = self.train, self.data, self.optimizer
        if self.probes.which:
            from hybridlm.probes.registry import LIVE  # here: most configs start without it

            for name in self.probes.which:
                require(name in LIVE, "probes.which", f"names {name!r}: {nearest(name, LIVE)}")
        require(
            data.batch_size % train.accumulate == 0,
            "train.accumulate",
            f"is {train.accumulate} and does not divide data.batch_size {data.batch_size}",
        )
        warmup, decay = optimizer.warmup_steps, optimizer.decay_steps
        wrong = f"is {warmup}, more than train.steps {train.steps}"
        if decay:
            wrong = f"{warmup} and decay_steps {decay} together exceed train.steps {train.steps}"
        require(warmup + (decay or 0) <= train.steps, "optimizer.warmup_steps", wrong)

        if self.teacher is not None and self.teacher.objective == "blockwise":
            for setting, wrong, reason in (
                ("optimizer.name", optimizer.name == "adafactor", "sums over layers"),
                (
                    "train.spike_sigma",
                    train.spike_sigma is not None,
                    "would skip all layers at once",
                ),
            ):
                require(
                    not wrong,
                    setting,
                    f"{reason}, and teacher.objective 'blockwise' updates each layer on its own:"
                    f" {'use adamw or muon' if setting == 'optimizer.name' else 'leave it None'}",
                )

    @property
    def tokens_per_step(self) -> int:
        return self.data.batch_size * self.data.seq_len


def run_settings(config: Config) -> RunSettings:
    """The settings that a run's folder is held to when the run goes on."""
    length = (schedule.LENGTH, schedule.why_not)
    limits = tuple(f"data.sources.{name}.max_epochs" for name in config.data.sources)
    return RunSettings(to_dict(config), FREE_ON_RESUME + limits, _complete, *length)


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    try:
        return to_dict(read_dataclass(Config, settings, ""))
    except ConfigError:  # of another version: compared as it stands
        return settings

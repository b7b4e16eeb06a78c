"""The settings of a run, as frozen dataclasses: what each key means, its type and its bounds."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from hybridlm.dataclass_reader import Invalid, require
from hybridlm.models import mixers as mixer_kinds
from hybridlm.models import pattern as patterns


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """The gated MLP of every block: `down(act(gate x) * up x)`."""

    hidden: int
    kind: Literal["swiglu", "geglu"] = "swiglu"

    def __post_init__(self):
        require(self.hidden >= 1, "hidden", f"must be at least 1, not {self.hidden}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only hybrid: named mixers, and a pattern that lays them out over the depth.

    Attributes:
      width: size of the residual stream.
      depth: number of blocks, prefix and suffix included.
      pattern: the repeating unit of mixer names, e.g. "swa full" or "rglru*2 swa".
      mixers: settings by mixer name; each has a `kind` and that kind's own settings.
      prefix, suffix: mixer names of layers before and after the repeated units.
      vocab_size: rows of the embedding; None takes the tokenizer's, rounded up to 64.
      block: where the norms sit (see `hybridlm.models.block`).
      logit_soft_cap: cap * tanh(logits / cap) at the head.
      z_loss: weight of the squared log-normaliser (ST-MoE, arXiv 2202.08906, eq. 5).
      embedding_scale: factor on the embedding's output; Gemma's is sqrt(width).
      init_std: standard deviation of the initial embedding; kernels start at 1 over sqrt(fan-in).
    """

    width: int
    depth: int
    pattern: str
    mixers: dict[str, Any]
    mlp: MLPConfig
    prefix: str = ""
    suffix: str = ""
    vocab_size: int | None = None
    block: Literal["prenorm", "sandwich", "parallel"] = "prenorm"
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    logit_soft_cap: float | None = None
    z_loss: float = 0.0
    embedding_scale: float = 1.0
    init_std: float = 0.02

    def __post_init__(self):
        for name in ("width", "depth"):
            require(
                getattr(self, name) >= 1, name, f"must be at least 1, not {getattr(self, name)}"
            )
        require(
            self.depth <= patterns.MAX_LAYERS,
            "depth",
            f"must be at most {patterns.MAX_LAYERS:,}, not {self.depth}",
        )
        require(self.vocab_size is None or self.vocab_size >= 2, "vocab_size", "must be at least 2")
        for name in ("norm_eps", "embedding_scale", "init_std"):
            require(getattr(self, name) > 0, name, f"must be positive, not {getattr(self, name)}")
        require(self.z_loss >= 0, "z_loss", "must be 0 or more")
        require(
            self.logit_soft_cap is None or self.logit_soft_cap > 0,
            "logit_soft_cap",
            "must be positive, or None for no cap",
        )
        require(bool(self.mixers), "mixers", "defines no mixer")
        parsed = {n: mixer_kinds.read_mixer(m, f"model.mixers.{n}") for n, m in self.mixers.items()}
        object.__setattr__(self, "mixers", parsed)
        for name, mixer in parsed.items():
            try:
                mixer.check_width(self.width)
            except Invalid as error:
                raise Invalid(f"mixers.{name}.{error.field}", str(error)) from None
        self.layout  # noqa: B018 - a bad pattern is an error of the config

    @property
    def layout(self) -> patterns.Layout:
        """The mixer names of prefix, repeating unit and suffix."""
        return patterns.parse(self.pattern, self.depth, self.prefix, self.suffix, self.mixers)

    def layer_mixers(self) -> list[tuple[str, Any]]:
        """(mixer name, mixer config) of each of the `depth` layers, bottom to top."""
        return [(name, self.mixers[name]) for name in self.layout.names]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where text comes from.

    Attributes:
      kind: "text" (files), "jsonl" (also .gz and .zst), "parquet", "arrayrecord" (one UTF-8
        document a record), or "tokens" (a folder that `hybridlm tokenize` wrote).
      path: a file, a folder ("tokens") or a glob; relative paths count from the working directory.
      text_key: the field or column that holds the text.
      weight: share of this source in the mixture, relative to the others'.
    """

    kind: Literal["text", "jsonl", "parquet", "arrayrecord", "tokens"]
    path: str
    text_key: str = "text"
    weight: float = 1.0

    def __post_init__(self):
        require(bool(self.path), "path", "is empty")
        require(bool(self.text_key), "text_key", "is empty")
        require(self.weight > 0, "weight", f"must be positive, not {self.weight}")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens: "bytes", or a "hf" `tokenizer.json`, or a "sentencepiece" model."""

    kind: Literal["bytes", "hf", "sentencepiece"] = "bytes"
    path: str | None = None

    def __post_init__(self):
        if self.kind == "bytes":
            require(self.path is None, "path", "must be None for the byte tokenizer")
        else:
            require(bool(self.path), "path", f"must name the file of the {self.kind} tokenizer")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches.

    Attributes:
      sources: by name; their weights make the mixture.
      seq_len: tokens in a sequence.
      batch_size: sequences in a global batch (all hosts, all accumulation steps).
      packing: "concat" cuts the stream of documents into windows; "best_fit" packs whole
        documents into windows (only longer ones are cut) and pads the rest.
      cross_document_attention: True lets a window be one document.
      heldout_fraction: share of documents kept for evaluation.
      verify: compare shards with their SHA-256 ("checksum") or only their sizes ("size").
      token_cache: folder for tokens of raw-text sources; None puts them in the workdir.
      prefetch: batches read ahead.
      bigram_baseline: score a bigram model of the corpus on the held-out sequences at the start.
    """

    sources: dict[str, SourceConfig]
    seq_len: int
    batch_size: int
    tokenizer: TokenizerConfig = TokenizerConfig()
    packing: Literal["concat", "best_fit"] = "concat"
    cross_document_attention: bool = False
    heldout_fraction: float = 0.05
    verify: Literal["checksum", "size"] = "checksum"
    token_cache: str | None = None
    prefetch: int = 4
    bigram_baseline: bool = False

    def __post_init__(self):
        require(bool(self.sources), "sources", "names no source")
        for name in ("seq_len", "batch_size", "prefetch"):
            require(
                getattr(self, name) >= 1, name, f"must be at least 1, not {getattr(self, name)}"
            )
        require(
            0 < self.heldout_fraction < 1,
            "heldout_fraction",
            f"must lie between 0 and 1, not {self.heldout_fraction}",
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
class MeshConfig:
    """Devices along each axis of the mesh; -1 (at most once) takes all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size >= 1 or size == -1, name, f"must be at least 1, or -1, not {size}")
        free = [name for name, size in sizes.items() if size == -1]
        require(len(free) <= 1, free[-1] if free else "data", "is -1, and so is another axis")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """The text generated at the end of a run; tokens 0 for none."""

    prompt: str = ""
    tokens: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        try:
            self.prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise Invalid("prompt", "is not valid UTF-8") from None
        require(self.tokens >= 0, "tokens", "must be 0 or more")
        require(self.temperature >= 0, "temperature", "must be 0 (greedy) or more")
        require(self.top_k is None or self.top_k >= 1, "top_k", "must be at least 1, or None")
        require(
            self.top_p is None or 0 < self.top_p <= 1, "top_p", "must lie in (0, 1], or be None"
        )


@dataclasses.dataclass(frozen=True)
class ProbesConfig:
    """What is looked at inside the model while it trains, into `probes.jsonl`.

    Attributes:
      which: "heads" (both retrieval scores and the entropy of every attention head) and
        "slot_share" (of Native Hybrid Attention); an empty list for nothing.
      interval: optimizer steps between two; the last step has one too.
      samples: needles in held-out text, at depths from 0 to 100% in turn.
      length: tokens of each, its answer included; None is data.seq_len.
    """

    which: tuple[Literal["heads", "slot_share"], ...] = ()
    interval: int = 100
    samples: int = 8
    length: int | None = None

    def __post_init__(self):
        require(len(set(self.which)) == len(self.which), "which", "names one twice")
        require(self.interval >= 1, "interval", f"must be at least 1, not {self.interval}")
        require(self.samples >= 1, "samples", f"must be at least 1, not {self.samples}")
        require(
            self.length is None or self.length >= 2,
            "length",
            f"must be at least 2, not {self.length}",
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


def to_dict(config: Any) -> Any:
    """The plain, JSON-ready form of a config: what `config.json` holds and `read` takes back."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        kind = getattr(config, "kind_name", None)
        return {"kind": kind, **fields} if kind else fields
    if isinstance(config, Mapping):
        return {k: to_dict(v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(v) for v in config]
    return config


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain settings as {dotted key: value}; an empty mapping is a value."""
    if isinstance(settings, dict) and settings:
        items = [flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in settings.items()]
        return {k: v for item in items for k, v in item.items()}
    return {prefix: settings}

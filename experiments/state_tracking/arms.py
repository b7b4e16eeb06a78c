"""The arms: models of one mixer, of the same width and depth, and how they are trained and measured."""

import dataclasses
from typing import Any

from experiments.state_tracking.tasks import VOCAB
from hybridlm.models.settings import ModelConfig
from hybridlm.train.settings import OptimizerConfig, TrainConfig

WIDTH, DEPTH, HEADS, SIZE = 32, 2, 2, 16  # SIZE: channels of a head, and of a state's rows
LENGTH, BATCH = 32, 16  # tokens and sequences of a training step
STEPS = {"parity": 600, "s3": 2000, "a5": 3000, "mqar": 1200}
LR = {"parity": 1e-2, "s3": 1e-2, "a5": 1e-2, "mqar": 3e-3}
SEEDS = (0, 1, 2)
#: Nats a label, as a mean over the last steps, that end a run of recall. Runs that track a state have all
#: their steps: a state that is off by a little is found out at greater lengths.
SOLVED, STEADY = 0.0005, 50
EARLY = ("mqar",)  # tasks whose runs end when they are solved
HELD_OUT, HELD_OUT_SEED = 128, 10**6  # sequences of a measurement, and their seed
TIMES = (1, 2, 4)  # lengths of measurements, over that of training


@dataclasses.dataclass(frozen=True)
class Arm:
    """A mixer with its options.

    Attributes:
      title: for tables.
      mixer: its settings.
      family: what decides which tasks it can do; a key of `predictions.FAMILIES`.
    """

    name: str
    title: str
    family: str
    mixer: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        """The model's settings that are not the library's defaults."""
        return dict(
            width=WIDTH,
            depth=DEPTH,
            pattern="mixer",
            mixers={"mixer": self.mixer},
            mlp=dict(kind="swiglu", hidden=2 * WIDTH),
            vocab_size=VOCAB,
            tie_embeddings=False,  # tokens and labels are numbers of two kinds
            init_std=1.0,
        )

    def model(self) -> ModelConfig:
        return ModelConfig(**self.settings())


def budget(task: str, steps: int | None = None) -> int:
    """The steps of a run: `steps`, or the task's own."""
    return STEPS[task] if steps is None else steps


def schedule(task: str, steps: int | None = None) -> dict[str, Any]:
    """AdamW, whose rate decays linearly to a tenth over the last half of the (task's) steps."""
    return dict(
        lr=LR[task],
        schedule="wsd",
        warmup_steps=20,
        decay_steps=budget(task, steps) // 2,
        final_lr_fraction=0.1,
        weight_decay=0.0,
        b2=0.98,
    )


def optimizer(task: str, steps: int | None = None) -> OptimizerConfig:
    return OptimizerConfig(**schedule(task, steps))


def train(task: str) -> TrainConfig:
    return TrainConfig(steps=STEPS[task])


def _delta(kind: str, **options: Any) -> dict[str, Any]:
    return dict(kind=kind, heads=HEADS, head_dim=SIZE, **options)


_ssm = dict(head_dim=SIZE, state_dim=SIZE)
_both = dict(value_dim=SIZE)
_latent = dict(heads=HEADS, kv_rank=SIZE, qk_nope=SIZE, qk_rope=SIZE // 2, value_dim=SIZE)
_negative = dict(negative_eigenvalues=True)

#: The most telling arms come first: what is done when a run is stopped is what can be compared.
ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            "attention-nope",
            "attention, NoPE",
            "attention",
            dict(kind="attention", heads=HEADS, rope=None),
        ),
        Arm("mamba2", "Mamba-2", "positive", dict(kind="mamba2", **_ssm)),
        Arm("mamba3", "Mamba-3", "rotation", dict(kind="mamba3", rope_fraction=1.0, **_ssm)),
        Arm("gdn", "Gated DeltaNet", "delta", _delta("gdn", **_both)),
        Arm(
            "gdn-negative",
            "Gated DeltaNet, negative",
            "reflection",
            _delta("gdn", **_both, **_negative),
        ),
        Arm("delta_product", "Gated DeltaProduct, 2", "product", _delta("delta_product", **_both)),
        Arm("rwkv7", "RWKV-7", "rwkv7", dict(kind="rwkv7", head_dim=SIZE)),
        Arm(
            "gdn2-negative",
            "Gated DeltaNet-2, negative",
            "reflection",
            _delta("gdn2", **_both, **_negative),
        ),
        Arm(
            "attention-forget",
            "forgetting attention",
            "attention",
            dict(kind="attention", heads=HEADS, rope=None, forget_gate=True),
        ),
        Arm("kda-negative", "KDA, negative", "reflection", _delta("kda", **_negative)),
        Arm(
            "mamba3-real",
            "Mamba-3, no rotation",
            "positive",
            dict(kind="mamba3", rope_fraction=0.0, **_ssm),
        ),
        Arm(
            "deltanet-negative",
            "DeltaNet, negative",
            "reflection",
            _delta("deltanet", **_both, **_negative),
        ),
        Arm("gla", "GLA", "positive", dict(kind="gla", heads=HEADS, expand_k=1.0)),
        Arm("attention-rope", "attention, RoPE", "attention", dict(kind="attention", heads=HEADS)),
        Arm("lightning", "Lightning", "fixed", dict(kind="lightning", heads=HEADS)),
        Arm("mlstm", "mLSTM", "positive", dict(kind="mlstm", heads=HEADS)),
        Arm("rglru", "RG-LRU", "vector", dict(kind="rglru", heads=HEADS)),
        Arm("gsa", "GSA", "positive", dict(kind="gsa", heads=HEADS, slots=SIZE)),
        Arm("nha", "NHA", "slots", dict(kind="nha", heads=HEADS, slots=SIZE, window=8)),
        Arm("short_conv", "short convolution", "local", dict(kind="short_conv", conv_width=4)),
        Arm("gdn2", "Gated DeltaNet-2", "delta", _delta("gdn2", **_both)),
        Arm("kda", "KDA", "delta", _delta("kda")),
        Arm("deltanet", "DeltaNet", "delta", _delta("deltanet", **_both)),
        Arm(
            "delta_product-positive",
            "Gated DeltaProduct, 2, positive",
            "delta",
            _delta("delta_product", **_both, negative_eigenvalues=False),
        ),
        Arm("retnet", "RetNet", "fixed", dict(kind="lightning", heads=HEADS, decay="retnet")),
        Arm("hgrn2", "HGRN2", "positive", dict(kind="hgrn2", expand=SIZE)),
        Arm("mamba1", "Mamba", "positive", dict(kind="mamba1", state_dim=SIZE)),
        Arm("mla", "multi-head latent attention", "attention", dict(kind="mla", **_latent)),
        Arm(
            "dsa",
            "DeepSeek sparse attention",
            "chosen",
            dict(kind="dsa", **_latent, q_rank=SIZE, index_heads=HEADS, index_dim=SIZE, top_k=8),
        ),
        Arm("moba", "MoBA", "chosen", dict(kind="moba", heads=HEADS, block=4, top_k=2)),
        Arm(
            "parallel",
            "attention and Mamba-2 in parallel",
            "beside",
            dict(
                kind="parallel",
                branches=dict(
                    attention=dict(kind="attention", heads=HEADS),
                    ssm=dict(kind="mamba2", **_ssm),
                ),
            ),
        ),
    )
}

_FEW = (
    "attention-nope",
    "mamba2",
    "mamba3",
    "gdn",
    "gdn-negative",
    "delta_product",
    "rwkv7",
)
#: The arms of tasks that not all arms run: one or two of each family.
SOME = {"s3": _FEW, "a5": _FEW}

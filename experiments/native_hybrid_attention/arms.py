"""The arms: models by the mixer of each layer, their windows and slots, and the sets that they form.

All windows of Native Hybrid Attention are parameters (`TracedNHAConfig`), so that arms which differ
in windows alone share one compiled program.
"""

import dataclasses
from typing import Any, NamedTuple

from experiments.state_tracking import arms as recall
from experiments.state_tracking.tasks import TASKS
from hybridlm.distill.windows import windowed_config
from hybridlm.models.mixers.traced_nha import ALL_TOKENS, TracedNHAConfig
from hybridlm.models.settings import ModelConfig
from hybridlm.train.settings import OptimizerConfig

SEEDS = (0, 1, 2, 3, 4, 5)  # six pairs are the fewest that have a finite 95% interval
MQAR, TEXT = "mqar", "text"
NHA, FULL, WINDOW = "nha", "full", "swa"
TEXT_CORPUS = "data/corpora/state_of_the_union.jsonl.gz"  # the demo's
TEXT_HELD_OUT = 128  # sequences
TEXT_LAST = 50  # steps that the training loss is a mean of


class Scale(NamedTuple):
    """A task's models and training.

    Attributes:
      width, depth, heads, mlp, vocab: of the models; heads have width / heads channels.
      length, batch: tokens of a sequence, and sequences of a step.
      steps, lr: of a run.
      window, slots: of Native Hybrid Attention where an arm does not say otherwise.
    """

    title: str
    width: int
    depth: int
    heads: int
    mlp: int
    vocab: int
    length: int
    batch: int
    steps: int
    lr: float
    window: int
    slots: int


#: MQAR is that of experiments/state_tracking, whose runner trains it.
SCALES = {
    MQAR: Scale(
        title=TASKS[MQAR].title,
        width=recall.WIDTH,
        depth=recall.DEPTH,
        heads=recall.HEADS,
        mlp=2 * recall.WIDTH,
        vocab=recall.VOCAB,
        length=recall.LENGTH,
        batch=recall.BATCH,
        steps=recall.STEPS[MQAR],
        lr=recall.LR[MQAR],
        window=8,
        slots=16,
    ),
    TEXT: Scale(
        title="text",
        width=64,
        depth=4,
        heads=4,
        mlp=128,
        vocab=320,
        length=128,
        batch=8,
        steps=400,
        lr=3e-3,
        window=16,
        slots=16,
    ),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One model on one task.

    Attributes:
      task: a key of `SCALES`.
      layers: kind of each layer, bottom to top: "nha", "gsa", "gdn", "full" or "swa"; only the last
        may differ from the others.
      windows: of each layer of Native Hybrid Attention, in tokens; None sees all.
      slots: of Native Hybrid Attention and gated slot attention.
      title: for tables.
      changed: other settings of Native Hybrid Attention that are not its defaults, by name.
    """

    task: str
    layers: tuple[str, ...]
    windows: tuple[int | None, ...] = ()
    slots: int = 16
    title: str = ""
    changed: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Short, the same for the same model whatever set it stands in."""
        kinds = list(dict.fromkeys(self.layers))
        name = "-".join(kinds)
        if NHA in kinds:
            spans = ["all" if w is None else str(w) for w in self.windows]
            spans = spans[:1] if len(set(spans)) == 1 else list(dict.fromkeys(spans))
            name += f"-w{'+'.join(spans)}"
        name = f"{name}-m{self.slots}" if {NHA, "gsa"} & set(kinds) else name
        return "-".join([name, *(f"{key}={value}" for key, value in self.changed)])

    @property
    def scale(self) -> Scale:
        return SCALES[self.task]

    def settings(self) -> dict[str, Any]:
        """The model's settings that are not the library's defaults, with plain mixers and all windows wide."""
        scale = self.scale
        last = self.layers[-1]
        settings = dict(
            width=scale.width,
            depth=scale.depth,
            pattern=self.layers[0],
            suffix="" if last == self.layers[0] else last,
            mixers={kind: self._mixer(kind) for kind in dict.fromkeys(self.layers)},
            mlp=dict(kind="swiglu", hidden=scale.mlp),
            vocab_size=scale.vocab,
        )
        if self.task == MQAR:
            settings |= dict(tie_embeddings=False, init_std=1.0)
        return settings

    def model(self) -> ModelConfig:
        """The model that is trained, whose windows are parameters."""
        settings = self.settings()
        if NHA in self.layers:
            plain = {k: v for k, v in settings["mixers"][NHA].items() if k != "kind"}
            settings["mixers"] = {**settings["mixers"], NHA: TracedNHAConfig(**plain)}
        return ModelConfig(**settings)

    def served(self) -> ModelConfig:
        """The model with windows as settings, as it would be served: for sizes of states."""
        model = ModelConfig(**self.settings())
        return windowed_config(model, dict(enumerate(self.windows))) if self.windows else model

    def spans(self) -> tuple[int, ...]:
        """The traced windows, of each layer of Native Hybrid Attention."""
        return tuple(ALL_TOKENS if w is None else w for w in self.windows)

    def schedule(self, steps: int) -> dict[str, Any]:
        """AdamW's settings; on MQAR those of experiments/state_tracking."""
        if self.task == MQAR:
            return recall.schedule(MQAR, steps)
        warmup = min(30, steps // 4)
        return dict(lr=self.scale.lr, schedule="cosine", warmup_steps=warmup, weight_decay=0.1)

    def optimizer(self, steps: int) -> OptimizerConfig:
        return OptimizerConfig(**self.schedule(steps))

    def _mixer(self, kind: str) -> dict[str, Any]:
        heads, size = self.scale.heads, self.scale.width // self.scale.heads
        return {
            NHA: dict(kind=NHA, heads=heads, slots=self.slots, window=None, **dict(self.changed)),
            "gsa": dict(kind="gsa", heads=heads, slots=self.slots),
            "gdn": dict(kind="gdn", heads=heads, head_dim=size, value_dim=size),
            FULL: dict(kind="attention", heads=heads),
            WINDOW: dict(kind="attention", heads=heads, window=self.scale.window),
        }[kind]


def nha(task: str, window: int | None, slots: int, title: str = "") -> Arm:
    """Native Hybrid Attention of one window in every layer."""
    depth = SCALES[task].depth
    return Arm(task, (NHA,) * depth, (window,) * depth, slots, title)


def core(task: str) -> list[Arm]:
    """The comparison: hybrids whose last layer sees all tokens, and full attention."""
    scale = SCALES[task]
    below, w, m = scale.depth - 1, scale.window, scale.slots

    def hybrid(kind: str, title: str) -> Arm:
        return Arm(task, (kind,) * below + (FULL,), (), m, title)

    return [
        Arm(task, (NHA,) * scale.depth, (w,) * below + (None,), m, "NHA, last window global"),
        hybrid("gsa", "GSA hybrid"),
        hybrid("gdn", "GDN hybrid"),
        Arm(task, (FULL,) * scale.depth, (), m, "full attention"),
    ]


def controls(task: str) -> list[Arm]:
    """What the hybrids are made of: a window alone below full attention, and no full layer at all."""
    scale = SCALES[task]
    below = scale.depth - 1
    return [
        Arm(task, (WINDOW,) * below + (FULL,), (), scale.slots, "window hybrid"),
        nha(task, scale.window, scale.slots, "NHA, no global window"),
        Arm(task, ("gsa",) * scale.depth, (), scale.slots, "GSA alone"),
        Arm(task, ("gdn",) * scale.depth, (), scale.slots, "GDN alone"),
    ]


WINDOWS = {MQAR: (0, 1, 2, 4, 8, 16, 24, 32), TEXT: (0, 4, 16, 64, 128)}  # of the slide
ABLATED_WINDOWS, ABLATED_SLOTS = (1, 2, 4, 8, 16), (4, 8, 16, 32)


def slide(task: str) -> list[Arm]:
    """One window in every layer, from none to the whole sequence."""
    return [nha(task, w, SCALES[task].slots) for w in WINDOWS[task]]


def ablation(task: str) -> list[Arm]:
    """Window x slots."""
    return [nha(task, w, m) for m in ABLATED_SLOTS for w in ABLATED_WINDOWS]


def causes() -> list[Arm]:
    """On MQAR a window of all tokens, without one or all of what it has and full attention has not."""
    differences = {
        "scale": ("logits times K^-1/2, not 1", None),
        "empty_slots": ("no empty slots in the softmax", "masked"),
        "swish_v": ("no swish on values", False),
        "output_norm": ("no swish and norm of the output", False),
    }
    window, slots = SCALES[MQAR].length, SCALES[MQAR].slots
    each = [(title, ((key, value),)) for key, (title, value) in differences.items()]
    every = tuple((key, value) for key, (_, value) in differences.items())
    arms = [("as published", ()), *each, ("all four changes", every)]
    return [
        dataclasses.replace(nha(MQAR, window, slots, title), changed=changed)
        for title, changed in arms
    ]


class Set(NamedTuple):
    """Arms that answer one question, and the seeds of each."""

    title: str
    arms: tuple[Arm, ...]
    seeds: int


SETS = {
    "core": Set(
        "hybrids and full attention", tuple(a for t in SCALES for a in core(t)), len(SEEDS)
    ),
    "slide": Set("w from 0 to T", tuple(a for t in SCALES for a in slide(t)), len(SEEDS)),
    "controls": Set(
        "parts of the hybrids", tuple(a for t in SCALES for a in controls(t)), len(SEEDS)
    ),
    "ablation": Set("window x slots, MQAR", tuple(ablation(MQAR)), 3),
    "causes": Set("a window of all tokens, MQAR", tuple(causes()), 3),
}
ARMS = {(arm.task, arm.name): arm for chosen in SETS.values() for arm in reversed(chosen.arms)}

"""The arms on real text: windows with RoPE, and two of them with NoPE, in the full layers.

Models have no shared first layer: as in arXiv 2606.15378, (window, full) alternate from the bottom.
The window is an input of the step, so that the arms of one kind of positions share its program.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hybridlm.models.settings import ModelConfig
from hybridlm.train.settings import OptimizerConfig

SEEDS = tuple(range(4))


class TextScale(NamedTuple):
    """A size of the experiment.

    Attributes:
      width, depth, heads, mlp, vocab: of the models.
      length: tokens of a training sequence.
      batch: sequences per step.
      tokens: of a run.
      windows: smallest first; full attention in the window's place is one more arm.
      nope: windows that are also run with NoPE in the full layers.
      span: least and most tokens of a spliced copy.
      measurements: of a run, the first step's aside.
      rows: held-out sequences of a measurement.
      prompts: of the probes, and needles of each range of distances.
      source_bytes: of the text; None for all.
    """

    name: str
    width: int
    depth: int
    heads: int
    mlp: int
    vocab: int
    length: int
    batch: int
    tokens: int
    windows: tuple[int, ...]
    nope: tuple[int, ...]
    span: tuple[int, int]
    measurements: int
    rows: int
    prompts: int
    source_bytes: int | None

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch * self.length)

    @property
    def bins(self) -> tuple[tuple[int, int], ...]:
        """Ranges of distances, cut at powers of 2; the last ends with a sequence."""
        edges = [self.span[0]]
        while edges[-1] < self.length:
            edges.append(2 * edges[-1])
        return tuple((a, b - 1) for a, b in zip(edges, edges[1:]))


#: 6.4M parameters without the embedding, 38M tokens a run.
TEXT = TextScale(
    name="text",
    width=256,
    depth=8,
    heads=4,
    mlp=704,
    vocab=4096,
    length=2048,
    batch=16,
    tokens=38_000_000,
    windows=(16, 128, 1024),
    nope=(128, 1024),
    span=(16, 64),
    measurements=20,
    rows=64,
    prompts=32,
    source_bytes=None,
)
#: A tenth of the parameters without the embedding and of the tokens, and an eighth of every length.
REHEARSAL = TEXT._replace(
    name="rehearsal",
    width=80,
    mlp=224,
    length=256,
    tokens=3_800_000,
    windows=(2, 16, 128),
    nope=(16, 128),
    span=(8, 16),
    measurements=10,
    source_bytes=12_000_000,
)
#: A run of seconds, for tests and for the smoke of the GPU visit.
SMOKE = REHEARSAL._replace(
    width=16,
    depth=2,
    heads=2,
    mlp=16,
    vocab=300,
    length=64,
    batch=2,
    tokens=256,
    windows=(2, 8, 32),
    nope=(8, 32),
    measurements=1,
    rows=16,
    prompts=2,
    source_bytes=300_000,
)
SCALES = {scale.name: scale for scale in (TEXT, REHEARSAL)}


class TextArm(NamedTuple):
    """One condition; its runs differ in their seeds.

    Attributes:
      window: of the window layers; twice the length for full attention in their place, so that it
        is full at twice the training length, too.
      positions: of the full layers, "rope" or "nope"; window layers have RoPE.
    """

    scale: TextScale
    window: int
    positions: str

    @property
    def is_full(self) -> bool:
        return self.window > self.scale.length

    @property
    def name(self) -> str:
        return f"{'full' if self.is_full else f'w{self.window}'}-{self.positions}"

    @property
    def searched(self) -> tuple[int, ...]:
        """The layers that see whole sequences: the full ones and, of full attention, all."""
        return tuple(range(0 if self.is_full else 1, self.scale.depth, 1 if self.is_full else 2))

    def model(self) -> ModelConfig:
        """The model's settings, equal for all arms with the same positions."""
        scale = self.scale
        attention = dict(kind="attention", heads=scale.heads)
        full = attention if self.positions == "rope" else dict(attention, rope=None)
        return ModelConfig(
            width=scale.width,
            depth=scale.depth,
            pattern="local full",
            vocab_size=scale.vocab,
            mixers=dict(local=dict(attention, window=2 * scale.length), full=full),
            mlp=dict(kind="swiglu", hidden=scale.mlp),
        )


def arms(scale: TextScale) -> list[TextArm]:
    """All arms, in order of worth."""
    first, *middle, last = scale.windows
    order = [(first, "rope"), (last, "rope"), (last, "nope"), (2 * scale.length, "rope")]
    order += [(window, "rope") for window in middle]
    order += [(window, "nope") for window in scale.nope if window != last]
    return [TextArm(scale, *pair) for pair in order]


def optimizer(steps: int) -> OptimizerConfig:
    """AdamW, the same for all arms: constant after the first twentieth, and lower in the last tenth.

    One rate, not swept: what differs between RoPE and NoPE may be the rate's doing.
    """
    return OptimizerConfig(
        lr=2e-3,
        schedule="wsd",
        warmup_steps=steps // 20,
        decay_steps=max(steps // 10, 1),
        weight_decay=0.1,
    )


def chosen(scale: TextScale, names: Sequence[str]) -> list[TextArm]:
    """The arms of these names, or all.

    Raises:
      KeyError: for a name that is no arm's.
    """
    by_name = {arm.name: arm for arm in arms(scale)}
    return [by_name[name] for name in names] if names else list(by_name.values())

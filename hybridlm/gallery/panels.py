"""Drawings of how a mixer works: heads, the keys that a query sees, a recurrent state."""

import math

from hybridlm.gallery import numbers, words
from hybridlm.gallery.drawing import Drawing
from hybridlm.gallery.families import css_name, families
from hybridlm.models.accounting import STATE_LENGTHS
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.mixers.moba import MoBAConfig
from hybridlm.models.mixers.parallel import ParallelConfig
from hybridlm.models.settings import ModelConfig

TOKENS, CELL = 16, 9.5  # of the picture of keys that queries see
SPAN, CHUNK, BLOCK = 5, 4, 2  # tokens of a window, a chunk and a block in it
HEADS = 8  # drawn at most in a group; twice as many in all
PANEL, HEIGHT = 240, 208
MARGIN = 20


def picture(title: str, config: ModelConfig, names: tuple[str, ...]) -> str:
    """The mixers `names` of a model as SVG; of two or more, also the strip of its layers."""
    d = Drawing()
    mixers = [branch for name in names for branch in _branches(config.mixers[name])]
    top = MARGIN
    if len(names) > 1:
        top = _layers(d, config, MARGIN, top, 2 * PANEL * len(mixers) - MARGIN)
    x = MARGIN
    for i, mixer in enumerate(mixers):
        if i and len(names) == 1:
            d.text(x - 14, top + HEIGHT / 2, "+", 20, "soft", "middle")
        x = _mixer(d, mixer, config.width, x, top)
    return d.svg(x, top + HEIGHT, title)


def _branches(mixer: MixerConfig) -> tuple[MixerConfig, ...]:
    return tuple(mixer.branches.values()) if isinstance(mixer, ParallelConfig) else (mixer,)


def _mixer(d: Drawing, mixer: MixerConfig, width: int, x: float, y: float) -> float:
    """Heads or state, and what a query sees; returns the x to the right of it."""
    (family,) = families(mixer)
    colour = css_name(family)
    d.text(x, y + 12, words.short(mixer), 12.5, "bold")
    if mixer.reach(2**20) is None:
        _state(d, mixer, width, x, y + 24, colour)
        return x + PANEL + 60
    _heads(d, mixer, x, y + 24, colour)
    _seen(d, mixer, x + PANEL, y + 24, colour)
    return x + PANEL + TOKENS * CELL + 60


def _heads(d: Drawing, mixer: MixerConfig, x: float, y: float, colour: str) -> None:
    """Query heads above the keys and values that they share; of many heads the first groups."""
    d.text(x, y + 18, f"{mixer.heads} query heads", 10.5, "soft")
    latent = isinstance(mixer, MLAConfig)
    group, shared = (HEADS, 1) if latent else _groups(mixer.heads, mixer.kv_heads)
    step = (PANEL - 40) / max(group * shared, HEADS)
    size, top, bottom = step * 0.76, y + 28, y + 104
    for i in range(group * shared):
        d.rect(x + i * step, top, size, size, f"box {colour}", 3)
        middle = x + (i // group * group + (group - 1) / 2) * step + size / 2
        d.path((x + i * step + size / 2, top + size), (middle, bottom - 2))
    for j in range(shared):
        left = x + (j * group + (group - 1) / 2) * step
        if latent:
            d.rect(x, bottom, (group - 1) * step + size, 16, colour, 3)
        else:
            d.rect(left, bottom, size, size, colour, 3)
    if latent:
        labels = [
            f"one latent of {mixer.kv_rank}, and one key",
            f"of {mixer.qk_rope} for all heads",
        ]
    else:
        labels = [f"{mixer.kv_heads} key and value head{'s' if mixer.kv_heads > 1 else ''}"]
    for i, label in enumerate(labels):
        d.text(x, bottom + max(size, 16) + 15 + 14 * i, label, 10.5, "soft")


def _groups(heads: int, kv_heads: int) -> tuple[int, int]:
    """(query heads of a group that are drawn, groups that are drawn)."""
    group = min(heads // kv_heads, HEADS)
    return group, max(1, min(kv_heads, 2 * HEADS // group, HEADS))


def _seen(d: Drawing, mixer: MixerConfig, x: float, y: float, colour: str) -> None:
    """Rows are queries, columns keys; filled where the query sees the key."""
    for query in range(TOKENS):
        seen = [key for key in range(query + 1) if sees(mixer, query, key)]
        for start, length in _runs(seen):
            d.rect(x + start * CELL, y + query * CELL, length * CELL, CELL, colour)
    side = TOKENS * CELL
    for i in range(TOKENS + 1):
        d.path((x + i * CELL, y), (x + i * CELL, y + side), kind="grid")
        d.path((x, y + i * CELL), (x + side, y + i * CELL), kind="grid")
    d.text(x + side / 2, y + side + 15, f"keys; drawn: {_scale(mixer)}", 10, "soft", "middle")


def sees(mixer: MixerConfig, query: int, key: int) -> bool:
    """Whether a query of the picture sees a key that is not later, its spans drawn small."""
    if isinstance(mixer, AttentionConfig | MLAConfig) and mixer.window:
        return query - key < SPAN
    if isinstance(mixer, AttentionConfig) and mixer.chunk:
        return query // CHUNK == key // CHUNK
    if isinstance(mixer, DSAConfig):
        # As an example, scores that a fixed rule makes up.
        return key in sorted(range(query + 1), key=lambda s: (7 * s + 3 * query) % 11)[:SPAN]
    if isinstance(mixer, MoBAConfig):
        own = query // BLOCK
        # As an example, a query chooses the first block and one in between.
        return key // BLOCK in (own, 0, (own * 5 // 8) or own)
    return True


def _scale(mixer: MixerConfig) -> str:
    if isinstance(mixer, AttentionConfig | MLAConfig) and mixer.window:
        return f"{SPAN} for {mixer.window:,}"
    if isinstance(mixer, AttentionConfig) and mixer.chunk:
        return f"{CHUNK} for {mixer.chunk:,}"
    if isinstance(mixer, DSAConfig):
        return f"{SPAN} for {mixer.top_k:,}"
    if isinstance(mixer, MoBAConfig):
        return f"{BLOCK} for {mixer.block} a block"
    return f"{TOKENS} tokens"


def _runs(keys: list[int]) -> list[tuple[int, int]]:
    """(start, length) of runs of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for key in keys:
        if runs and sum(runs[-1]) == key:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((key, 1))
    return runs


def _state(d: Drawing, mixer: MixerConfig, width: int, x: float, y: float, colour: str) -> None:
    """A state that each token changes and reads."""
    size, step = 38, 70
    subscripts = "\u2081\u2082\u2083\u2084"
    for i in range(4):
        left = x + 8 + i * step
        d.rect(left, y + 54, size, size, f"box {colour}", 5)
        d.text(left + size / 2, y + 78, f"S{subscripts[i]}", 13, "bold", "middle")
        d.path((left + size / 2, y + 122), (left + size / 2, y + 94), arrow=True)
        d.path((left + size / 2, y + 54), (left + size / 2, y + 26), arrow=True)
        d.text(left + size / 2, y + 135, f"x{subscripts[i]}", 11, "soft", "middle")
        d.text(left + size / 2, y + 20, f"o{subscripts[i]}", 11, "soft", "middle")
        if i < 3:
            d.path((left + size, y + 73), (left + step, y + 73), arrow=True)
    held = numbers.gib(mixer.state_bytes(width, STATE_LENGTHS[-1]))
    d.text(x, y + 166, f"{held} a layer, whatever the length", 10.5, "soft")


def _layers(d: Drawing, config: ModelConfig, x: float, y: float, width: float) -> float:
    """All layers as a strip, the lowest at the left; returns the y below it."""
    names = config.layout.names
    wide = min(width / len(names), 14)
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    label = " and ".join(f"{n} {words.short(config.mixers[m])}" for m, n in counts.items())
    d.text(x, y + 12, f"{config.depth} layers, the lowest at the left: {label}", 11, "soft")
    for i, name in enumerate(names):
        (family,) = families(config.mixers[name])
        d.rect(x + i * wide, y + 22, wide - 1.5, 20, css_name(family))
    return y + 62 + math.ceil(MARGIN / 2)

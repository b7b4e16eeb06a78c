"""Where the teacher's retrieval and induction heads are, and whether a selection kept their layers."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from hybridlm.errors import UserError
from hybridlm.probes.heads import retrieval_heads, top_heads
from hybridlm.probes.induction import LONGEST, induction_heads, repeated_prompts
from hybridlm.probes.layers import mixer_names
from hybridlm.probes.needles import needle_prompts
from hybridlm.probes.settings import TOP_K
from hybridlm.probes.table import Head
from hybridlm.runs.opened import OpenedModel

RETRIEVAL = 0.1  # of the copy score, from which arXiv 2404.15574 calls a head a retrieval head


@dataclasses.dataclass(frozen=True)
class LayerHeads:
    """The best heads of a layer of the teacher.

    Attributes:
      mass, copy: the largest retrieval scores of its heads; None where needles were not used.
      retrieval: number of heads with a copy score of at least 0.1; None likewise.
      induction: the largest score of its heads.
    """

    layer: int
    mixer: str
    mass: float | None
    copy: float | None
    retrieval: int | None
    induction: float


@dataclasses.dataclass(frozen=True)
class RetrievalMap:
    """The heads of the teacher by layer.

    Attributes:
      layers: the layers with heads, bottom to top.
      top: the heads with the most attention to needles, or the largest scores of induction.
      by: "retrieval" or "induction": which of these two.
      why: why needles were not used; None where they were.
    """

    layers: tuple[LayerHeads, ...]
    top: tuple[Head, ...]
    by: str
    why: str | None = None

    def record(self) -> dict[str, Any]:
        """The map as plain values, ready for JSON."""
        return dataclasses.asdict(self) | {"top": [str(head) for head in self.top]}

    def overlap(self, kept: Collection[int], candidates: Collection[int]) -> "Overlap":
        """How many of the top heads a selection kept; heads of other layers are always kept."""
        own = [head for head in self.top if head.layer in candidates]
        lost = tuple(str(head) for head in own if head.layer not in kept)
        chance = len(own) * len(set(kept)) / len(candidates)
        return Overlap(self.by, len(own), len(own) - len(lost), chance, lost)


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The top heads in layers that may be replaced.

    Attributes:
      by: "retrieval" or "induction".
      heads: their number; kept: those in layers that keep attention; lost: the others.
      chance: the number kept on average if the same number of layers is drawn.
    """

    by: str
    heads: int
    kept: int
    chance: float
    lost: tuple[str, ...]

    def __str__(self) -> str:
        lost = f"; replaced: {', '.join(self.lost)}" if self.lost else ""
        return (
            f"keeps {self.kept} of the teacher's top {self.heads} {self.by} heads ({self.chance:.1f}"
            f" by chance{lost})"
        )


def retrieval_map(
    teacher: OpenedModel,
    length: int,
    *,
    samples: int = 20,
    seed: int = 0,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> RetrievalMap:
    """Scores the teacher's heads by the probes `retrieval_heads` and `induction_heads`.

    Needles are not used where the teacher has no tokenizer or they do not fit the length.

    Args:
      length: tokens of a prompt with a needle.
    """
    model, params, tokenizer = teacher.model, teacher.params, teacher.tokenizer
    options: dict[str, Any] = dict(batch=batch, dtype=dtype)
    size, special = model.config.vocab_size, set[int]()
    found, why = None, "the teacher has no tokenizer" if len(tokenizer.pieces()) < 2 else None
    if why is None:
        size = min(size, tokenizer.vocab_size)  # not the padding of the embedding
        special = {tokenizer.bos_id, tokenizer.eos_id, *tokenizer.special_tokens.values()}
        try:
            prompts, _ = needle_prompts(tokenizer, length, samples, seed)
            found = retrieval_heads(model, params, prompts, **options)
        except UserError as error:
            why = str(error)
    repeated = repeated_prompts(size, min(length, LONGEST), samples, seed, special)
    induction = induction_heads(model, params, repeated, **options)
    names, layers = mixer_names(model), []
    for layer in sorted({entry.layer for entry in induction}):
        heads = [e for e in found or () if e.layer == layer]
        best = max(e.score for e in induction if e.layer == layer)
        layers.append(
            LayerHeads(
                layer,
                names[layer],
                max((e.mass for e in heads), default=None),
                max((e.copy for e in heads), default=None),
                sum(e.copy >= RETRIEVAL for e in heads) if heads else None,
                best,
            )
        )
    if found is not None:
        return RetrievalMap(tuple(layers), top_heads(found, TOP_K), "retrieval")
    order = sorted(induction, key=lambda e: (-e.score, e.layer, e.head))
    top = tuple(Head(e.layer, e.head) for e in order[:TOP_K])
    return RetrievalMap(tuple(layers), top, "induction", why)

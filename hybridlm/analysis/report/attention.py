"""Attention over text for a report: the weights that its view shows with their values in full."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from hybridlm.analysis.inspected import Inspected
from hybridlm.analysis.layers import OUTPUTS, head_count
from hybridlm.errors import UserError
from hybridlm.progress import doing

MOST = 4_000_000  # weights in a page: 16 MB, a third more as text
HEADS = 32  # of a layer; the channels of a recurrence may be thousands


@dataclasses.dataclass(frozen=True)
class AttentionText:
    """Attention weights of layers over one text.

    Attributes:
      title: of the view.
      tokens: the text of each token.
      layers: by the layer's label, "layer 4: full", its weights (heads, queries, keys), with a query
        and a key for each token. Those of effective attention may be negative.

    Raises:
      ValueError: if a layer's weights do not fit the tokens, or there are more than `MOST`.
    """

    title: str
    tokens: Sequence[str]
    layers: dict[str, Any]

    def __post_init__(self):
        length, total = len(self.tokens), 0
        for label, weights in self.layers.items():
            shape = np.shape(weights)
            total += int(np.prod(shape))
            if len(shape) != 3 or shape[1:] != (length, length):
                raise ValueError(
                    f"{label} has weights of shape {shape}: (heads, {length}, {length}) would fit"
                    f" its {length} tokens"
                )
        if total > MOST:
            raise ValueError(
                f"{total:,} weights are more than the {MOST:,} that a page holds: choose fewer"
                " layers or a shorter text"
            )

    def packed(self) -> list[dict[str, Any]]:
        """For the page's script: label, number of heads, and float32 weights in base64."""
        return [
            {
                "label": label,
                "heads": int(np.shape(weights)[0]),
                "data": base64.b64encode(np.asarray(weights, "<f4").tobytes()).decode(),
            }
            for label, weights in self.layers.items()
        ]


def attention_text(
    model: Inspected, text: str, layers: Sequence[str | int] | None = None
) -> AttentionText:
    """The attention of a model over a text: softmax attention, and the exact one of linear mixers.

    Of a layer with more than `HEADS` heads (a recurrence whose channels are heads) the first are
    taken.

    Args:
      layers: numbers of layers, or names of mixers for all their layers; None is all layers whose
        attention is defined.

    Raises:
      UserError: for an unknown layer, a layer without attention, or with several, that is asked for, an
        empty text, or more weights than a page holds.
    """
    if not text:
        raise UserError("--text is empty: give the text over which attention is shown")
    tokens = model.strings(text)[0]
    found: dict[str, Any] = {}
    for layer in range(len(model.mixers)) if layers is None else _numbers(model, layers):
        try:
            heads = head_count(model.model, layer, None)
            shown = range(min(heads, HEADS))
            with doing(f"computing the attention of layer {layer} over the text"):
                weights = np.asarray(model.effective_attention(text, layer, shown))[0]
        except UserError:
            if layers is not None:
                raise
            continue
        label = f"layer {layer}: {model.mixers[layer]}"
        if heads > HEADS:
            label += f", {HEADS} of {heads} channels"
        found[label] = weights
    if not found:
        raise UserError("no layer of the model has attention weights that could be shown")
    try:
        return AttentionText(text, tokens, found)
    except ValueError as error:
        raise UserError(f"--text: {error}") from None


def _numbers(model: Inspected, layers: Sequence[str | int]) -> list[int]:
    """Layers by number or by the name of their mixer, bottom to top."""
    chosen: set[int] = set()
    for asked in map(str, layers):
        named = {i for i, name in enumerate(model.mixers) if asked in (name, str(i))}
        if not named:
            raise UserError(
                f"layers has {asked!r}, and the model has layers 0 to {len(model.mixers) - 1} of the"
                f" mixers {', '.join(dict.fromkeys(model.mixers))}"
            )
        chosen |= named
    _check_whole(model, sorted(chosen))
    return sorted(chosen)


def _check_whole(model: Inspected, layers: Sequence[int]) -> None:
    """Refuses layers that mix tokens in parts of their own alone, each with its attention."""
    known = [name.rpartition(".") for name in model.hooks([[0, 0]])]
    outputs = {scope for scope, _, name in known if name in OUTPUTS}
    for layer in layers:
        mixer = f"blocks.{layer}.attn"
        parts = sorted(s.removeprefix(f"{mixer}.") for s in outputs if s.startswith(f"{mixer}."))
        if parts and mixer not in outputs:
            raise UserError(
                f"--layers has layer {layer} ({model.mixers[layer]}), whose parts {', '.join(parts)}"
                " attend each by itself, and a report shows the attention of whole layers: leave it"
                f" out, or call effective_attention(text, {layer}, part={parts[0]!r}) of"
                " hybridlm.analysis.open_model"
            )

"""Attention over text for a report: the weights that its view shows with exact values."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST = 4_000_000  # weights in a page: 16 MB, a third more as text


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

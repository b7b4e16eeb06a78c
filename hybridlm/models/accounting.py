"""What a model costs: parameters, FLOPs and state by layer."""

import dataclasses
from typing import Any

import jax
import numpy as np

from hybridlm.errors import ConfigError
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig

STATE_LENGTHS = (4_096, 131_072, 1_048_576)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One row of the layer table.

    Attributes:
      name: the mixer's name in the config, or "embedding" / "head".
      mechanism: the mixer in a few words.
      parameters: in this layer, its norms and MLP included.
      flops_per_token: of the forward pass; a multiply-add counts 2, causal halves are counted as
        halves, windows as windows.
      state_bytes: per sequence after each of `STATE_LENGTHS` tokens, bfloat16 caches.
    """

    name: str
    mechanism: str
    parameters: int
    flops_per_token: float
    state_bytes: tuple[int, ...]


def layer_table(model: Model, seq_len: int) -> list[LayerCost]:
    """The cost of every layer, bottom to top, embedding and head at the ends."""
    config = model.config
    mlp_flops = 2 * 3 * config.width * config.mlp.hidden
    embedding = int(np.prod(model.abstract["embedding"].shape))
    rows = [LayerCost("embedding", "token embedding", embedding, 0.0, (0,) * len(STATE_LENGTHS))]
    for (name, mixer), parameters in zip(config.layer_mixers(), _layer_parameters(model)):
        rows.append(
            LayerCost(
                name,
                mixer.mechanism,
                parameters,
                mixer.flops_per_token(config.width, seq_len) + mlp_flops,
                tuple(mixer.state_bytes(config.width, n) for n in STATE_LENGTHS),
            )
        )
    head = 0 if config.tie_embeddings else embedding
    tied = "head, tied to the embedding" if config.tie_embeddings else "head"
    norm = config.width
    flops = 2.0 * config.width * config.vocab_size
    rows.append(LayerCost("head", tied, head + norm, flops, (0,) * len(STATE_LENGTHS)))
    return rows


def train_flops_per_token(model: Model, seq_len: int) -> float:
    """FLOPs of forward and backward: 3 times the forward's; recomputation is not counted."""
    return 3 * sum(row.flops_per_token for row in layer_table(model, seq_len))


def _layer_parameters(model: Model) -> list[int]:
    """Parameters of each layer, bottom to top."""

    def group(name: str) -> list[int]:
        blocks: dict[str, Any] = model.abstract.get(name, {})
        ordered = sorted(blocks.items(), key=lambda item: int(item[0].split("_", 1)[0]))
        return [sum(int(np.prod(x.shape)) for x in jax.tree.leaves(b)) for _, b in ordered]

    repeats = model.config.layout.repeats
    unit = [size // max(repeats, 1) for size in group("unit")]
    return group("prefix") + unit * repeats + group("suffix")


def with_vocab(config: ModelConfig, tokenizer_size: int, multiple: int = 64) -> ModelConfig:
    """`config` with its vocabulary size: the tokenizer's, rounded up to a multiple, if None.

    Raises:
      ConfigError: where a given size is smaller than the tokenizer's.
    """
    if config.vocab_size is None:
        size = -(-tokenizer_size // multiple) * multiple
        return dataclasses.replace(config, vocab_size=size)
    if config.vocab_size < tokenizer_size:
        raise ConfigError(
            f"model.vocab_size is {config.vocab_size}, and the tokenizer has {tokenizer_size} ids"
        )
    return config

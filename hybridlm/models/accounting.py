"""The cost of a model: parameters, FLOPs and state by layer."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from hybridlm.errors import ConfigError
from hybridlm.models.params import Model
from hybridlm.models.pattern import Layer
from hybridlm.models.settings import ModelConfig

STATE_LENGTHS = (4_096, 131_072, 1_048_576)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One row of the layer table.

    Attributes:
      name: the layer as the pattern writes it, or "embedding" / "head".
      mechanism: a short description of the mixer.
      parameters: of this layer, including its norms and feed-forward.
      flops_per_token: of the forward pass; a multiply-add counts 2, and masked-out pairs of causal
        or windowed attention do not count.
      state_bytes: cache of one sequence after each of `STATE_LENGTHS` tokens, in bfloat16.
      active: parameters that one token uses; None means all.
    """

    name: str
    mechanism: str
    parameters: int
    flops_per_token: float
    state_bytes: tuple[int, ...]
    active: int | None = None


def layer_table(model: Model, seq_len: int) -> list[LayerCost]:
    """The costs of the embedding, of each layer from bottom to top, and of the head.

    Per-layer inputs count, outside the layers, to the embedding.
    """
    config = model.config
    embedding, none = math.prod(model.abstract["embedding"].shape), (0,) * len(STATE_LENGTHS)
    first = LayerCost("embedding", "token embedding", embedding, 0.0, none)
    if config.per_layer is not None:
        outer = sum(math.prod(x.shape) for x in jax.tree.leaves(model.abstract["per_layer"]))
        flops = config.per_layer.outer_flops(config.width, config.depth)
        what = "embeddings of tokens and of layers"
        first = LayerCost("embedding", what, embedding + outer, flops, none)
    rows = [first]
    states = [state_bytes(config, n) for n in STATE_LENGTHS]
    for index, layer in enumerate(config.layout.layers):
        mixer, feedforward = config.mixer_of(layer), config.feedforward_of(layer)
        parameters = sum(math.prod(shape) for shape in model.layer_shapes(index).values())
        idle = feedforward.parameters(config.width) - feedforward.active_parameters(config.width)
        flops = mixer.flops_per_token(config.width, seq_len)
        flops += beside_halves(config, layer)
        rows.append(
            LayerCost(
                layer.label,
                mixer.mechanism,
                parameters,
                flops + feedforward.flops_per_token(config.width),
                tuple(held[index] for held in states),
                parameters - idle,
            )
        )
    head = 0 if config.tie_embeddings else embedding
    tied = "head, tied to the embedding" if config.tie_embeddings else "head"
    norm = sum(math.prod(x.shape) for x in jax.tree.leaves(model.abstract["final_norm"]))
    flops = 2.0 * config.width * config.vocab_size
    rows.append(LayerCost("head", tied, head + norm, flops, (0,) * len(STATE_LENGTHS)))
    return rows


def beside_halves(config: ModelConfig, layer: Layer) -> float:
    """FLOPs of a token in a layer beside its mixer and feed-forward: per-layer inputs, streams."""
    flops = 0.0
    if config.per_layer is not None:
        flops += config.per_layer.layer_flops(config.width)
    if config.streams is not None:
        halves = config.mixer_of(layer), config.feedforward_of(layer)
        present = sum(half.kind_name != "none" for half in halves)
        flops += config.streams.layer_flops(config.width, present)
    return flops


def state_bytes(config: ModelConfig, seq_len: int) -> list[int]:
    """Bytes of each layer's decoding state of one sequence after `seq_len` tokens.

    The state of a layer is that of its mixer and of its feed-forward (`channel_mix` keeps a token). Caches
    are bfloat16, recurrent states float32.
    """
    return [
        mixer.state_bytes(config.width, seq_len) + feedforward.state_bytes(config.width)
        for (_, mixer), feedforward in zip(
            config.layer_mixers(), config.layer_feedforwards(), strict=True
        )
    ]


def active_parameters(model: Model) -> int:
    """The number of parameters that one token uses: all but those of experts that it does not go to."""
    config = model.config
    idle = sum(
        feedforward.parameters(config.width) - feedforward.active_parameters(config.width)
        for feedforward in config.layer_feedforwards()
    )
    return model.count() - idle


def train_flops_per_token(model: Model, seq_len: int) -> float:
    """FLOPs of forward and backward pass: 3 times the forward pass, without recomputation."""
    return 3 * sum(row.flops_per_token for row in layer_table(model, seq_len))


class Work(NamedTuple):
    """What training on a batch takes, without its padding.

    Attributes:
      tokens: of documents.
      flops: of forward and backward pass; attention counts keys of the token's own document.
    """

    tokens: int
    flops: float


def document_lengths(segment_ids_BT: np.ndarray) -> np.ndarray:
    """The lengths of the documents in rows of segment ids (0 is padding), row by row: int (N,).

    A document is a run of one id within a row: the part of it that the row holds.
    """
    begins_BT = np.ones(segment_ids_BT.shape, bool)
    begins_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    begins = np.flatnonzero(begins_BT)
    lengths = np.diff(begins, append=segment_ids_BT.size)
    return lengths[segment_ids_BT.ravel()[begins] != 0]


def work_counter(model: Model) -> Callable[[np.ndarray], Work]:
    """A function that counts the work of a batch from its segment ids (rows, time).

    A document of n tokens takes n times `train_flops_per_token(model, n)`, which is computed once
    for each n.
    """
    config = model.config
    layers = collections.Counter((x.mixer, x.feedforward) for x in config.layout.layers)
    kinds = {(x.mixer, x.feedforward): x for x in config.layout.layers}
    mixers = [(config.mixer_of(kinds[key]), count) for key, count in layers.items()]
    same = 2.0 * config.width * config.vocab_size + sum(
        count * config.feedforward_of(kinds[key]).flops_per_token(config.width)
        for key, count in layers.items()
    )
    if config.per_layer is not None:
        same += config.per_layer.outer_flops(config.width, config.depth)
    same += sum(beside_halves(config, layer) for layer in config.layout.layers)

    def of_token(length: int) -> float:
        return 3 * (
            sum(count * m.flops_per_token(config.width, length) for m, count in mixers) + same
        )

    return counter_of(of_token)


def counter_of(flops_per_token: Callable[[int], float]) -> Callable[[np.ndarray], Work]:
    """A function that counts the work of a batch, from the FLOPs of a token in a document of n tokens."""

    @functools.cache
    def of_document(length: int) -> float:
        return length * flops_per_token(length)

    def count(segment_ids_BT: np.ndarray) -> Work:
        lengths = document_lengths(segment_ids_BT)
        found = zip(*np.unique(lengths, return_counts=True))
        flops = sum(int(many) * of_document(int(length)) for length, many in found)
        return Work(int(lengths.sum()), float(flops))

    return count


def with_vocab(config: ModelConfig, tokenizer_size: int, multiple: int = 64) -> ModelConfig:
    """Sets a vocabulary size of None to the tokenizer's, rounded up to a multiple of `multiple`.

    Raises:
      ConfigError: if the config's vocabulary is smaller than the tokenizer's.
    """
    if config.vocab_size is None:
        size = -(-tokenizer_size // multiple) * multiple
        return dataclasses.replace(config, vocab_size=size)
    if config.vocab_size < tokenizer_size:
        raise ConfigError(
            f"model.vocab_size is {config.vocab_size}, and the tokenizer has {tokenizer_size} ids"
        )
    return config

"""The fact sheet of a model: what its config implies, computed without arrays.

Two counts of bytes stand side by side. The public tables of architectures count the keys and values
of all layers with attention for every token, windowed layers included, and nothing for recurrent
layers: `kv_bytes`. A cache holds less and more than that: a layer with a window keeps its last
tokens only, and a recurrent layer keeps a state: `cache_bytes`.
"""

import dataclasses
import math

from hybridlm.gallery.catalogue import Entry
from hybridlm.gallery.facts import Excluded, Facts
from hybridlm.models.accounting import STATE_LENGTHS, LayerCost, beside_halves, layer_table
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.base import MixerConfig
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.mixers.parallel import ParallelConfig
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """The layers of one kind.

    Attributes:
      label: the layer as the pattern writes it.
      count: how many there are.
      mixer, feedforward: their settings.
      parameters, active: of one such layer; `active` is what one token uses.
      kv_bytes_per_token: bytes of keys and values of one token, as if the layer had no window.
    """

    label: str
    count: int
    mixer: MixerConfig
    feedforward: FeedForwardConfig
    parameters: int
    active: int
    kv_bytes_per_token: int


@dataclasses.dataclass(frozen=True)
class AtLength:
    """What a sequence of `tokens` tokens takes, in bfloat16 with float32 recurrent states.

    Attributes:
      tokens: length of the sequence.
      kv_bytes: keys and values of all its tokens in all layers with attention.
      cache_bytes: what the caches and states hold after its last token.
      prefill_flops: FLOPs per token of its forward pass; the mean over the sequence.
      decode_flops: FLOPs of the forward pass of its last token, after the others.
    """

    tokens: int
    kv_bytes: int
    cache_bytes: int
    prefill_flops: float
    decode_flops: float


@dataclasses.dataclass(frozen=True)
class Sheet:
    """The facts and figures of one model.

    Attributes:
      name: of its recipe.
      facts: what its publishers state.
      config: its settings.
      parameters: all, with those of `facts.left_out` and `facts.outside`, without `facts.surplus`.
      active: parameters that one token uses: all but those of idle experts and of `facts.outside`.
      embedding: entries of the embedding; an untied head has as many.
      kinds: its kinds of layers, in the order in which they first appear.
      kv_bytes_per_token: bytes of keys and values of one token in all layers, bfloat16, as if no
        layer had a window, and with those of `facts.left_out_kv`; recurrent layers have none.
      lengths: at 4k, 128k and 1M tokens.
    """

    name: str
    facts: Facts
    config: ModelConfig
    parameters: int
    active: int
    embedding: int
    layer_embedding: int
    kinds: tuple[LayerKind, ...]
    kv_bytes_per_token: int
    lengths: tuple[AtLength, ...]

    @property
    def total_as_published(self) -> int:
        """Parameters without what `facts.total_excludes` names."""
        return self.parameters - self._excluded(self.facts.total_excludes)

    @property
    def active_as_published(self) -> int:
        """Active parameters without what `facts.active_excludes` names."""
        return self.active - self._excluded(self.facts.active_excludes)

    def _excluded(self, parts: Excluded) -> int:
        if parts == "embeddings of layers":
            return self.layer_embedding
        if parts == "n-gram embeddings":
            return round(sum((self.facts.outside or {}).values()))
        count = {"nothing": 0, "embedding": 1, "embedding and head": 2}[parts]
        return self.embedding * (min(count, 1) if self.config.tie_embeddings else count)


def sheet(entry: Entry) -> Sheet:
    """Computes the sheet of a model; uses no device and makes no parameters."""
    name, facts, config = entry
    labels = config.layout.labels
    counts = {label: labels.count(label) for label in dict.fromkeys(labels)}
    # A model with each kind of layer once has the same rows and is traced in a fraction of the time.
    once = dataclasses.replace(
        config, pattern=" ".join(counts), depth=len(counts), prefix="", suffix=""
    )
    model = Model.of(once)
    tables = {n: _of_depth(layer_table(model, n), once, config.depth) for n in STATE_LENGTHS}
    rows = tables[STATE_LENGTHS[0]]
    times = (1, *counts.values(), 1)  # of the embedding, of each kind of layer, of the head
    kinds = _kinds(once, tuple(counts.values()), rows[1:-1])
    left_out, surplus, outside, left_out_kv, cached = (
        round(sum((parts or {}).values()))
        for parts in (
            facts.left_out,
            facts.surplus,
            facts.outside,
            facts.left_out_kv,
            facts.left_out_cache,
        )
    )
    left_out -= surplus
    kv = sum(kind.count * kind.kv_bytes_per_token for kind in kinds) + left_out_kv

    def total(numbers):
        return sum(count * number for count, number in zip(times, numbers, strict=True))

    return Sheet(
        name=name,
        facts=facts,
        config=config,
        parameters=total(x.parameters for x in rows) + left_out + outside,
        active=total(x.parameters if x.active is None else x.active for x in rows) + left_out,
        embedding=math.prod(model.abstract["embedding"].shape),
        layer_embedding=_layer_embedding(config),
        kinds=kinds,
        kv_bytes_per_token=kv,
        lengths=tuple(
            AtLength(
                n,
                kv * n,
                total(x.state_bytes[i] for x in rows) + (left_out_kv + cached) * n,
                total(x.flops_per_token for x in tables[n]) - 2 * surplus,
                _decode_flops(config.width, kinds, n) + _inputs_flops(config, rows) - 2 * surplus,
            )
            for i, n in enumerate(STATE_LENGTHS)
        ),
    )


def _of_depth(rows: list[LayerCost], once: ModelConfig, depth: int) -> list[LayerCost]:
    """The rows of `once`, with the embedding's of a model of `depth` layers: per-layer inputs grow."""
    inputs, width = once.per_layer, once.width
    if inputs is None:
        return rows
    vocab, first = once.vocab_size, rows[0]
    more = inputs.outer_parameters(width, depth, vocab)
    more -= inputs.outer_parameters(width, once.depth, vocab)
    flops = inputs.outer_flops(width, depth)
    row = dataclasses.replace(
        first, parameters=first.parameters + more, flops_per_token=flops, active=None
    )
    return [row, *rows[1:]]


def _inputs_flops(config: ModelConfig, rows: list[LayerCost]) -> float:
    """FLOPs of a token beside those of mixers and feed-forwards: of the head, of per-layer inputs."""
    flops = rows[0].flops_per_token + rows[-1].flops_per_token
    return flops + sum(beside_halves(config, layer) for layer in config.layout.layers)


def _layer_embedding(config: ModelConfig) -> int:
    """Entries of the embedding of per-layer inputs."""
    if config.per_layer is None:
        return 0
    return (config.per_layer.rows or config.vocab_size) * config.depth * config.per_layer.size


def kv_bytes_per_token(mixer: MixerConfig, width: int) -> int:
    """Bytes of keys and values that one more token adds in bfloat16, without windows and chunks.

    As in the public tables, values that are the keys' projection count once, although a cache that
    holds rotated keys needs them twice (Gemma 4), and the keys of an indexer do not count.
    """
    if isinstance(mixer, ParallelConfig):
        return sum(kv_bytes_per_token(branch, width) for branch in mixer.branches.values())
    spans = {f.name for f in dataclasses.fields(mixer)} & {"window", "chunk"}
    whole = dataclasses.replace(mixer, **dict.fromkeys(spans)) if spans else mixer
    near, far = (whole.state_bytes(width, n) for n in (2**20, 2**21))
    added = (far - near) // 2**20
    if isinstance(mixer, DSAConfig):
        return added if mixer.index_in else added - 2 * mixer.index_dim
    once = isinstance(mixer, AttentionConfig) and mixer.values == "keys"
    return added // 2 if once else added


def decode_flops(mixer: MixerConfig, width: int, tokens: int) -> float:
    """FLOPs of a mixer for the last of `tokens` tokens, the others in its cache."""
    if isinstance(mixer, ParallelConfig):
        return sum(decode_flops(branch, width, tokens) for branch in mixer.branches.values())
    if isinstance(mixer, MLAConfig):
        return _latent_decode_flops(mixer, width, tokens)
    # All tokens but the last take `tokens - 1` times the mean of the shorter sequence.
    before = (tokens - 1) * mixer.flops_per_token(width, tokens - 1) if tokens > 1 else 0.0
    return tokens * mixer.flops_per_token(width, tokens) - before


def _latent_decode_flops(mla: MLAConfig, width: int, tokens: int) -> float:
    """A query attends to latents: W_k is applied to it, and W_v to the mixture of latents."""
    expanded = mla.flops_per_token(width, 1)
    heads, cached = mla.heads, mla.kv_rank + mla.qk_rope
    attended_one = 2 * heads * (mla.qk_nope + mla.qk_rope + mla.value_dim)
    indexed, tokens = 0, mla.reach(tokens)
    if isinstance(mla, DSAConfig):  # all tokens are scored, and the chosen ones attended to
        indexed = 2 * mla.index_heads * (mla.index_dim + 1) * (tokens - 1) / mla.pool
        tokens = min(tokens, mla.top_k)
    return expanded - attended_one + 2 * heads * 2 * cached * tokens + indexed


def _kinds(
    once: ModelConfig, counts: tuple[int, ...], rows: list[LayerCost]
) -> tuple[LayerKind, ...]:
    return tuple(
        LayerKind(
            layer.label,
            count,
            once.mixer_of(layer),
            once.feedforward_of(layer),
            row.parameters,
            row.parameters if row.active is None else row.active,
            kv_bytes_per_token(once.mixer_of(layer), once.width),
        )
        for layer, count, row in zip(once.layout.layers, counts, rows, strict=True)
    )


def _decode_flops(width: int, kinds: tuple[LayerKind, ...], tokens: int) -> float:
    """FLOPs of all layers for the last of `tokens` tokens."""
    return sum(
        kind.count
        * (decode_flops(kind.mixer, width, tokens) + kind.feedforward.flops_per_token(width))
        for kind in kinds
    )

"""Softmax attention: full or windowed, MHA/GQA/MQA, RoPE or NoPE, with the options of the field."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.dataclass_reader import require
from hybridlm.models.layers import Identity, Linear, RMSNorm
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.positional import Rope, RopeConfig, no_rope
from kernels_pallas import segments
from kernels_pallas.attention import AttentionState, attention
from kernels_pallas.attention.decode import decode_attention


@dataclasses.dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """Causal softmax attention.

    Attributes:
      heads: query heads.
      kv_heads: key/value heads; None is `heads` (MHA), 1 is MQA, between is GQA.
      head_dim: size of a head; None is width // heads.
      window: keys a query sees, its own included; None for full attention.
      rope: its settings, or None for NoPE.
      qk_norm: RMSNorm with a learned scale on each query and key head before RoPE.
      output_gate: out * sigmoid(gate(x)) before the output projection (arXiv 2505.06708).
      sinks: a learned logit per head that only enlarges the softmax's denominator (gpt-oss).
      soft_cap: cap * tanh(logits / cap) on attention logits (Gemma 2).
      scale: factor on logits; None is head_dim ** -0.5.
    """

    kind_name: ClassVar[str] = "attention"
    equation: ClassVar[str] = "o_t = sum_{t-W < s <= t} softmax_s(scale q_t . k_s) v_s"
    source: ClassVar[str] = "arXiv 1706.03762 sec. 3.2; GQA arXiv 2305.13245"

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    rope: RopeConfig | None = RopeConfig()
    qk_norm: bool = False
    output_gate: bool = False
    sinks: bool = False
    soft_cap: float | None = None
    scale: float | None = None

    def __post_init__(self):
        require(self.heads >= 1, "heads", f"must be at least 1, not {self.heads}")
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        require(kv_heads >= 1, "kv_heads", f"must be at least 1, not {kv_heads}")
        require(
            self.heads % kv_heads == 0,
            "kv_heads",
            f"is {kv_heads} and does not divide heads {self.heads}: use {_divisors(self.heads)}",
        )
        require(
            self.window is None or self.window >= 1,
            "window",
            f"must be at least 1 (a query's own key counts), or None for full attention,"
            f" not {self.window}",
        )
        for name in ("head_dim", "soft_cap", "scale"):
            value = getattr(self, name)
            require(value is None or value > 0, name, f"must be positive, or None, not {value}")
        object.__setattr__(self, "kv_heads", kv_heads)
        if self.head_dim is not None:
            self._check_rope(self.head_dim)

    def check_width(self, width: int) -> None:
        if self.head_dim is None:
            require(
                width % self.heads == 0,
                "heads",
                f"is {self.heads} and does not divide model.width {width}: use"
                f" {_divisors(width)}, or set head_dim",
            )
            self._check_rope(width // self.heads)

    def _check_rope(self, head_dim: int) -> None:
        if self.rope is not None:
            rotated = self.rope.rotated(head_dim)
            require(
                rotated >= 2 and rotated % 2 == 0,
                "rope",
                f"rotates {rotated} of {head_dim} dimensions of a head: it needs an even number",
            )

    def head_size(self, width: int) -> int:
        return self.head_dim or width // self.heads

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Attention":
        return Attention(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        size = self.head_size(width)
        query_sized = 3 if self.output_gate else 2
        projections = 2 * width * size * (query_sized * self.heads + 2 * self.kv_heads)
        return projections + 4 * self.heads * size * mean_keys(seq_len, self.window)

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        keys = min(seq_len, self.window or seq_len)
        return 2 * keys * self.kv_heads * self.head_size(width) * itemsize

    @property
    def mechanism(self) -> str:
        span = f"window {self.window}" if self.window else "full"
        position = "RoPE" if self.rope else "NoPE"
        return f"{span} attention, {position}"


def mean_keys(seq_len: int, window: int | None) -> float:
    """Keys a causal query attends to, its own included, averaged over a sequence."""
    if window is None or window >= seq_len:
        return (seq_len + 1) / 2
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len


class KVCache(NamedTuple):
    """Keys and values of past tokens in a ring of S entries; token i lies at i % S.

    Attributes:
      k_BSGK, v_BSGV: rotated keys, and values, in the activations' dtype.
      segment_ids_BS: int32, 0 for entries not yet written (and for padding).
      indices_S: int32, the index of the token held, -1 for none.
      document_start_B: int32, index of the first token of the newest token's document.
      length: int32 scalar, tokens seen.
    """

    k_BSGK: jax.Array
    v_BSGV: jax.Array
    segment_ids_BS: jax.Array
    indices_S: jax.Array
    document_start_B: jax.Array
    length: jax.Array


class Attention(Mixer):
    """The mixer of `AttentionConfig`."""

    def __init__(self, config: AttentionConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, size = spec.width, config.head_size(spec.width)
        heads, kv_heads = config.heads, config.kv_heads
        self.config = config
        self.q = Linear(width, heads * size, ("embed", "heads"), rngs=rngs)
        self.k = Linear(width, kv_heads * size, ("embed", "kv_heads"), rngs=rngs)
        self.v = Linear(width, kv_heads * size, ("embed", "kv_heads"), rngs=rngs)
        self.out = Linear(heads * size, width, ("heads", "embed"), rngs=rngs, scale=spec.out_scale)
        self.q_norm = RMSNorm(size, spec.norm_eps) if config.qk_norm else Identity()
        self.k_norm = RMSNorm(size, spec.norm_eps) if config.qk_norm else Identity()
        self.rope = Rope(config.rope, size) if config.rope else no_rope
        self.gate = (
            SigmoidGate(width, heads * size, rngs=rngs) if config.output_gate else Identity()
        )
        self.sinks = Sinks(heads) if config.sinks else None
        self.size = size
        self.scale = config.scale or size**-0.5

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        q, k, v = self._project(x_BTD, context)
        out_BTHV, _ = attention(q, k, v, segment_ids=context.segment_ids_BT, **self._options())
        return self._output(out_BTHV, x_BTD)

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> KVCache:
        """An empty cache for at most `max_len` tokens; a window needs no more than it sees."""
        entries = min(max_len, self.config.window or max_len)
        shape = (batch, entries, self.config.kv_heads, self.size)
        return KVCache(
            jnp.zeros(shape, dtype),
            jnp.zeros(shape, dtype),
            jnp.zeros((batch, entries), jnp.int32),
            jnp.full((entries,), -1, jnp.int32),
            jnp.zeros((batch,), jnp.int32),
            jnp.int32(0),
        )

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: KVCache
    ) -> tuple[jax.Array, KVCache]:
        q, k, v = self._project(x_BTD, context)
        if x_BTD.shape[1] == 1:
            state = _write(state, k, v, context.segment_ids_BT)
            out_BTHV = self._attend_cache(q, state, context.segment_ids_BT)
        else:
            out_BTHV, _ = attention(
                q,
                k,
                v,
                segment_ids=context.segment_ids_BT,
                initial_state=_in_order(state),
                **self._options(),
            )
            state = _write(state, k, v, context.segment_ids_BT)
        return self._output(out_BTHV, x_BTD), state

    def _project(
        self, x_BTD: jax.Array, context: SequenceContext
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch, time, _ = x_BTD.shape
        q_BTHK = self.q(x_BTD).reshape(batch, time, self.config.heads, self.size)
        k_BTGK = self.k(x_BTD).reshape(batch, time, self.config.kv_heads, self.size)
        v_BTGV = self.v(x_BTD).reshape(batch, time, self.config.kv_heads, self.size)
        q_BTHK = self.rope(self.q_norm(q_BTHK), context.positions_BT)
        k_BTGK = self.rope(self.k_norm(k_BTGK), context.positions_BT)
        return q_BTHK, k_BTGK, v_BTGV

    def _output(self, out_BTHV: jax.Array, x_BTD: jax.Array) -> jax.Array:
        return self.out(self.gate(out_BTHV.reshape(*x_BTD.shape[:2], -1), x_BTD))

    def _options(self) -> dict[str, object]:
        return dict(window=self.config.window, **self._logit_options())

    def _logit_options(self) -> dict[str, object]:
        sinks_H = None if self.sinks is None else self.sinks.logits[...]
        return dict(scale=self.scale, sinks_H=sinks_H, soft_cap=self.config.soft_cap)

    def _attend_cache(
        self, q_B1HK: jax.Array, cache: KVCache, segment_ids_B1: jax.Array
    ) -> jax.Array:
        first_B = cache.document_start_B
        if self.config.window is not None:
            first_B = jnp.maximum(first_B, cache.length - self.config.window)
        first_B1 = jnp.maximum(first_B, 0)[:, None]
        valid_BS = (cache.indices_S[None, :] >= first_B1) & (segment_ids_B1 != 0)
        out_BHV = decode_attention(
            q_B1HK[:, 0], cache.k_BSGK, cache.v_BSGV, valid_BS, **self._logit_options()
        )
        return out_BHV[:, None]


class SigmoidGate(nnx.Module):
    """y * sigmoid(W x): a head-wise, element-wise output gate."""

    def __init__(self, width: int, size: int, *, rngs: nnx.Rngs):
        self.proj = Linear(width, size, ("embed", "heads"), rngs=rngs)

    def __call__(self, y: jax.Array, x: jax.Array) -> jax.Array:
        return y * jax.nn.sigmoid(self.proj(x))


class Sinks(nnx.Module):
    """One logit per head, zero at first: as if one more key with value 0 were always there."""

    def __init__(self, heads: int):
        self.logits = nnx.Param(jnp.zeros(heads), axes=("heads",))


def _write(cache: KVCache, k: jax.Array, v: jax.Array, segment_ids_BT: jax.Array) -> KVCache:
    """Puts the newest tokens into the ring, each at its index modulo the ring's size."""
    entries, time = cache.k_BSGK.shape[1], k.shape[1]
    newest_B = cache.segment_ids_BS[:, (cache.length - 1) % entries]
    starts_BT = segments.document_starts(segment_ids_BT, newest_B)
    start_indices_BT = jnp.where(
        starts_BT, cache.length + jnp.arange(time, dtype=jnp.int32)[None, :], 0
    )
    kept = min(time, entries)
    indices = cache.length + jnp.arange(time - kept, time, dtype=jnp.int32)
    places = indices % entries
    return KVCache(
        cache.k_BSGK.at[:, places].set(k[:, time - kept :].astype(cache.k_BSGK.dtype)),
        cache.v_BSGV.at[:, places].set(v[:, time - kept :].astype(cache.v_BSGV.dtype)),
        cache.segment_ids_BS.at[:, places].set(segment_ids_BT[:, time - kept :]),
        cache.indices_S.at[places].set(indices),
        jnp.maximum(cache.document_start_B, jnp.max(start_indices_BT, axis=1)),
        cache.length + time,
    )


def _in_order(cache: KVCache) -> AttentionState:
    """The ring's entries oldest first, so that the newest stands directly before the next token."""
    entries = cache.k_BSGK.shape[1]

    def unroll(x: jax.Array) -> jax.Array:
        return jnp.roll(x, -(cache.length % entries), axis=1)

    return AttentionState(unroll(cache.k_BSGK), unroll(cache.v_BSGV), unroll(cache.segment_ids_BS))


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)

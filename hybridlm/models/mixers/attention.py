"""Softmax attention: full, windowed or chunked; MHA, GQA or MQA; RoPE or NoPE."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Identity, Linear, scale
from hybridlm.models.mixers import patterns, rows, token_cache
from hybridlm.models.mixers.base import LayerSpec, MixerConfig, SequenceContext
from hybridlm.models.mixers.capabilities import AttentionMixer
from hybridlm.models.mixers.forget_gate import ForgetGate, NoForgetGate
from hybridlm.models.mixers.spans import Chunk, Window, WindowSize, mean_keys
from hybridlm.models.mixers.token_cache import TokenCache
from hybridlm.models.norms import RMSNorm, UnitOffsetRMSNorm, UnitRMS
from hybridlm.models.positional import (
    Rope,
    RopeConfig,
    Temperature,
    TemperatureConfig,
    check_rope,
    no_rope,
    no_temperature,
)
from hybridlm.parallel import ops
from hybridlm.settings.bounds import AtLeast, PositiveFloat, PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas.attention import AttentionState, decode_attention

__all__ = ["Attention", "AttentionConfig", "mean_keys"]


@settings
class AttentionConfig(MixerConfig):
    """Causal softmax attention.

    Attributes:
      heads: query heads.
      kv_heads: key/value heads; None is `heads` (MHA), 1 is MQA, between is GQA.
      head_dim: size of a head; None is width // heads.
      window: keys a query sees, its own included; None for full attention.
      chunk: positions of a chunk: a query sees the keys of its own chunk of the document, as in
        Llama 4's local layers; None for full attention. Not together with window.
      rope: RoPE's settings, or None for NoPE.
      temperature: a factor on the logits that grows with the position, or None; for NoPE layers.
      qk_norm: RMSNorm on each query and key head before RoPE: True with a learned scale,
        "unit_offset" with 1 plus a learned scale (Gemma 3), "l2" without (Llama 4); "whole" over all
        heads at once, with a scale per channel (OLMo 2).
      values: "keys" makes the keys' projection that of the values, too (Gemma 4); "own" has one.
      v_norm: RMSNorm without a scale on each value head (Gemma 4).
      value_dim: size of a value head; None is head_dim. MiMo-V2-Flash has 128 with keys of 192.
      value_scale: factor on the values; 0.707 in MiMo-V2-Flash.
      output_gate: out * sigmoid(gate(x)) before the output projection (arXiv 2505.06708): True
        element by element, "head" one gate a head.
      bias: True adds biases to all four projections, "qkv" to those of queries, keys and values
        (Qwen2), "out" to that of the output (RecurrentGemma).
      sinks: a learned logit per head that only enlarges the softmax's denominator (gpt-oss).
      soft_cap: cap * tanh(logits / cap) on attention logits (Gemma 2).
      forget_gate: gates f = sigmoid(W x + b), one a token and query head, whose logarithms after a key up
        to the query are added to the logit (Forgetting Transformer, arXiv 2503.02130), which has no RoPE.
      scale: factor on logits; None is head_dim ** -0.5.
      kv_out: name under which layers above may read this layer's keys and values; None for none.
      kv_in: name of the keys and values that this layer attends to, those of the highest layer below
        with this kv_out: it has no projections and no cache of them (arXiv 2405.12981; Gemma 4). Its
        kv_heads, head_dim and value_dim are that layer's; values, v_norm and value_scale, which are
        set there alone, stay at their defaults. None makes its own.
    """

    kind_name: ClassVar[str] = "attention"
    other_names: ClassVar[Mapping[str, str]] = {
        "swa": "window=... (tokens)",
        "sliding_window": "window=... (tokens)",
        "sliding_window_attention": "window=... (tokens)",
        "windowed_attention": "window=... (tokens)",
        "local": "window=... (tokens)",
        "local_attention": "window=... (tokens)",
        "chunked_attention": "chunk=... (tokens)",
        "block_local_attention": "chunk=... (tokens)",
        "gqa": "kv_heads=... (fewer than heads)",
        "grouped_query_attention": "kv_heads=... (fewer than heads)",
        "cross_layer_attention": "kv_in=... (kv_out of a layer below)",
        "cla": "kv_in=... (kv_out of a layer below)",
        "kv_sharing": "kv_in=... (kv_out of a layer below)",
        "mqa": "kv_heads=1",
        "multi_query_attention": "kv_heads=1",
        "mha": "",
        "multi_head_attention": "",
        "softmax": "",
        "softmax_attention": "",
        "full": "",
        "full_attention": "",
        "global": "",
        "global_attention": "",
        "causal_attention": "",
        "self_attention": "",
        "attn": "",
        "flash_attention": "",
        "transformer": "",
        "gated_attention": "output_gate=True",
        "forgetting_attention": "forget_gate=True, rope=None",
        "forgetting_attn": "forget_gate=True, rope=None",
        "forgetting_transformer": "forget_gate=True, rope=None",
        "fox": "forget_gate=True, rope=None",
        "nope": "rope=None",
        "nope_attention": "rope=None",
        "rope_attention": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads", "kv_heads")
    equation: ClassVar[str] = "o_t = sum_{t-W < s <= t} softmax_s(scale q_t . k_s) v_s"
    source: ClassVar[str] = "arXiv 1706.03762 sec. 3.2; GQA arXiv 2305.13245"
    operations: ClassVar[tuple[str, ...]] = ("attention",)

    heads: PositiveInt
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    window: WindowSize | None = None
    chunk: Annotated[int, AtLeast(1, none="for full attention")] | None = None
    rope: RopeConfig | None = RopeConfig()
    temperature: TemperatureConfig | None = None
    qk_norm: bool | Literal["unit_offset", "l2", "whole"] = False
    output_gate: bool | Literal["head"] = False
    bias: bool | Literal["qkv", "out"] = False
    sinks: bool = False
    soft_cap: PositiveFloat | None = None
    forget_gate: bool = False
    scale: PositiveFloat | None = None
    values: Literal["own", "keys"] = "own"
    v_norm: bool = False
    value_dim: PositiveInt | None = None
    value_scale: PositiveFloat = 1.0
    kv_out: str | None = None
    kv_in: str | None = None

    def __post_init__(self):
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        require(
            self.heads % kv_heads == 0,
            "kv_heads",
            f"is {kv_heads} and does not divide heads {self.heads}: use {_divisors(self.heads)}",
        )
        require(
            self.chunk is None or self.window is None,
            "chunk",
            "goes without window: attention is local in one way or the other",
        )
        require(
            self.values == "own" or self.value_dim in (None, self.head_dim),
            "value_dim",
            f"is {self.value_dim}, and values that are keys have the size of those: leave it out",
        )
        for name in ("kv_out", "kv_in"):
            require(getattr(self, name) != "", name, "is empty: give a name, or None")
            require(
                getattr(self, name) is None or not self.forget_gate,
                name,
                "goes without forget_gate, whose gates are of the layer that has the keys",
            )
        require(
            self.kv_in is None or self.kv_out is None,
            "kv_in",
            "goes without kv_out: layers above can read the layer that has the keys",
        )
        for name, default in (("values", "own"), ("v_norm", False), ("value_scale", 1.0)):
            require(
                self.kv_in is None or getattr(self, name) == default,
                name,
                "does nothing with kv_in: set it in the layer that makes the values",
            )
        object.__setattr__(self, "kv_heads", kv_heads)
        if self.head_dim is not None:
            check_rope(self.rope, self.head_dim)

    def check_width(self, width: int) -> None:
        if self.head_dim is None:
            require(
                width % self.heads == 0,
                "heads",
                f"is {self.heads} and does not divide model.width {width}: use"
                f" {_divisors(width)}, or set head_dim",
            )
            check_rope(self.rope, width // self.heads)

    def head_size(self, width: int) -> int:
        return self.head_dim or width // self.heads

    def value_size(self, width: int) -> int:
        """Size of a value head."""
        return self.value_dim or self.head_size(width)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Attention":
        return Attention(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        size, value = self.head_size(width), self.value_size(width)
        gates = {False: 0, True: value * self.heads, "head": self.heads}[self.output_gate]
        gates += self.heads * self.forget_gate
        made = 0 if self.kv_in else self.kv_heads
        keys = size * (self.heads + made)
        values = value * (self.heads + (made if self.values == "own" else 0))
        projections = 2 * width * (keys + values + gates)
        return projections + 2 * self.heads * (size + value) * self.span.mean_keys(seq_len)

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        if self.kv_in:  # the layer below has the cache
            return 0
        keys = min(seq_len, self.span.window or seq_len)
        size = self.head_size(width) + self.value_size(width)
        return keys * (self.kv_heads * size * itemsize + 4 * self.heads * self.forget_gate)

    def reach(self, seq_len: int) -> int:
        return min(self.window or self.chunk or seq_len, seq_len)

    @property
    def mechanism(self) -> str:
        gates = ", forget gates" if self.forget_gate else ""
        shared = ", keys of a layer below" if self.kv_in else ""
        return f"{self.span} attention, {'RoPE' if self.rope else 'NoPE'}{gates}{shared}"

    def cross_layer(self, width: int, depth: int) -> dict[str, tuple[int, ...]]:
        name = self.kv_in or self.kv_out
        if name is None:
            return {}
        sizes = (self.head_size(width), self.value_size(width))
        return {c: (self.kv_heads, size) for c, size in zip(_channels(name), sizes)}

    @property
    def hands_on(self) -> str | None:
        return self.kv_out

    @property
    def reads_cache(self) -> str | None:
        return self.kv_in

    @property
    def span(self) -> Window | Chunk:
        """The keys a query sees."""
        return Window(self.window) if self.chunk is None else Chunk(self.chunk)


class Attention(AttentionMixer):
    """The mixer of `AttentionConfig`."""

    def __init__(self, config: AttentionConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, size = spec.width, config.head_size(spec.width)
        value = config.value_size(spec.width)
        heads, kv_heads = config.heads, config.kv_heads
        self.config = config
        bias = config.bias in (True, "qkv")
        self.q = Linear(width, heads * size, ("embed", "heads"), rngs=rngs, bias=bias)

        def into_heads(wanted: bool, size: int) -> Linear | None:
            if not wanted:
                return None
            return Linear(width, kv_heads * size, ("embed", "kv_heads"), rngs=rngs, bias=bias)

        own = config.kv_in is None
        self.k = into_heads(own, size)
        self.v = into_heads(own and config.values == "own", value)
        self.v_norm = UnitRMS(spec.norm_eps) if config.v_norm else Identity()
        self.scale_values = scale(config.value_scale)
        self.out = Linear(
            heads * value,
            width,
            ("heads", "embed"),
            rngs=rngs,
            scale=spec.out_scale,
            bias=config.bias in (True, "out"),
        )
        self.q_norm = QK_NORMS[config.qk_norm](heads, size, spec.norm_eps)
        self.k_norm = QK_NORMS[config.qk_norm if own else False](kv_heads, size, spec.norm_eps)
        self.keys = SharedKeys(config.kv_in, config.kv_out)
        self.rope = Rope(config.rope, size) if config.rope else no_rope
        self.temperature = Temperature(config.temperature) if config.temperature else no_temperature
        self.gate = OUTPUT_GATES[config.output_gate](width, heads, value, rngs=rngs)
        self.sinks = Sinks(heads) if config.sinks else None
        self.forget = ForgetGate(width, heads, rngs=rngs) if config.forget_gate else NoForgetGate()
        self.span = config.span
        self.size, self.value_size = size, value
        self.scale = config.scale or size**-0.5

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        q, k, v = self._project(x_BTD, context)
        self.keys.hand_on(context, k, v)
        ids_BT = self.span.segment_ids(context)
        log_forget_BTH = self._log_forget(x_BTD, context)
        out_BTHV, _ = ops.attention(
            q,
            k,
            v,
            segment_ids=ids_BT,
            window=self._window(context),
            log_forget_BTH=log_forget_BTH,
            **self._logit_options(),
        )
        out_BTHV = patterns.observed(
            context,
            out_BTHV,
            q,
            k,
            v,
            lambda rows_BQ: rows.visible_keys(ids_BT, rows_BQ, self._window(context)),
            bias=lambda rows_BQ: self.forget.between_pairs(log_forget_BTH, rows_BQ),
            **self._logit_options(),
        )
        return self._output(out_BTHV, x_BTD, context)

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> TokenCache | tuple[()]:
        """An empty cache of keys and values, for `max_len` tokens or a window, whichever is less.

        Nothing for a layer that attends to another's.
        """
        if self.config.kv_in is not None:
            return ()
        capacity = min(max_len, self.span.window or max_len)
        shapes = tuple((self.config.kv_heads, size) for size in (self.size, self.value_size))
        return self.forget.with_gates(token_cache.empty(batch, capacity, shapes, dtype))

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: TokenCache | tuple[()]
    ) -> tuple[jax.Array, TokenCache | tuple[()]]:
        if context.window is not None:
            raise ValueError(
                "context.window is for the parallel form only; use `narrowed` to decode"
            )
        q, k, v = self._project(x_BTD, context)
        log_forget_BTH = self._log_forget(x_BTD, context)
        tokens = (k, v) if log_forget_BTH is None else (k, v, log_forget_BTH)
        ids_BT = context.segment_ids_BT
        before = state
        if self.keys.own:
            state = token_cache.write(state, tokens, ids_BT, self.span.window)
        one = x_BTD.shape[1] == 1
        # A single token reads its own key from the cache; several read the cache and their own.
        cache = self.keys.cache(context, state if one else before)
        self.keys.hand_on(context, k, v, cache)
        if one:
            seen_B = self.span.keys_at(context.positions_BT[:, 0])
            valid_BS = token_cache.visible(cache, ids_BT, seen_B)
            out_BHV = decode_attention(
                q[:, 0],
                *cache.entries[:2],
                valid_BS,
                bias_BSH=self.forget.bias(cache, valid_BS),
                **self._logit_options(),
            )
            out_BTHV = out_BHV[:, None]
        else:
            (*past, log_forget_BSH), past_ids_BS = self.forget.in_order(cache)
            span_ids_BS = self.span.segment_ids(_with_past(context, past_ids_BS))
            past_ids_BS, span_ids_BT = jnp.split(span_ids_BS, [past_ids_BS.shape[1]], axis=1)
            out_BTHV, _ = ops.attention(
                q,
                k,
                v,
                segment_ids=span_ids_BT,
                window=self.span.window,
                log_forget_BTH=log_forget_BTH,
                initial_state=AttentionState(*past, past_ids_BS, log_forget_BSH),
                **self._logit_options(),
            )
        return self._output(out_BTHV, x_BTD, context), state

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> rows.AttentionRows:
        q_BTHK, k_BTGK, _ = self._project(x_BTD, context)
        ids_BT = self.span.segment_ids(context)
        visible_B1QT = rows.visible_keys(ids_BT, rows_BQ, self._window(context))
        q_BQHK = rows.take(q_BTHK, rows_BQ)
        return rows.probabilities(
            q_BQHK,
            k_BTGK,
            visible_B1QT,
            bias_BHQT=self.forget.between_pairs(self.forget(x_BTD), rows_BQ),
            **self._logit_options(),
        )

    @property
    def has_window(self) -> bool:
        return True

    def narrowed(self, window: int) -> "Attention":
        copy = nnx.clone(self)
        copy.span = self.span.narrowed(window)
        return copy

    def _project(
        self, x_BTD: jax.Array, context: SequenceContext
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch, time, _ = x_BTD.shape
        q_BTHK = self.q(x_BTD).reshape(batch, time, self.config.heads, self.size)
        if self.k is None:
            q_BTHK = self.rope(self.q_norm(context.hook("hook_q", q_BTHK)), context.positions_BT)
            if self.config.rope is not None:
                q_BTHK = context.hook("hook_rot_q", q_BTHK)
            return self.temperature(q_BTHK, context.positions_BT), *self.keys.read(context)
        k_BTGK = self.k(x_BTD).reshape(batch, time, self.config.kv_heads, self.size)
        v_BTGV = k_BTGK
        if self.v is not None:
            v_BTGV = self.v(x_BTD).reshape(batch, time, self.config.kv_heads, self.value_size)
        q_BTHK, k_BTGK = context.hook("hook_q", q_BTHK), context.hook("hook_k", k_BTGK)
        q_BTHK = self.rope(self.q_norm(q_BTHK), context.positions_BT)
        k_BTGK = self.rope(self.k_norm(k_BTGK), context.positions_BT)
        v_BTGV = context.hook("hook_v", self.scale_values(self.v_norm(v_BTGV)))
        if self.config.rope is not None:
            q_BTHK = context.hook("hook_rot_q", q_BTHK)
            k_BTGK = context.hook("hook_rot_k", k_BTGK)
        return self.temperature(q_BTHK, context.positions_BT), k_BTGK, v_BTGV

    def _log_forget(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array | None:
        log_forget_BTH = self.forget(x_BTD)
        if log_forget_BTH is None:
            return None
        return context.hook("hook_log_forget", log_forget_BTH)

    def _output(self, out_BTHV: jax.Array, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        gated_BTHV = self.gate(context.hook("hook_z", out_BTHV), x_BTD)
        return self.out(gated_BTHV.reshape(*x_BTD.shape[:2], -1))

    def _window(self, context: SequenceContext) -> int | jax.Array | None:
        """The window of the parallel form: the smaller of the mixer's own and the context's."""
        if context.window is None or self.span.window is None:
            return self.span.window
        return jnp.minimum(context.window, self.span.window)

    def _logit_options(self) -> dict[str, object]:
        sinks_H = None if self.sinks is None else self.sinks.logits[...]
        return dict(scale=self.scale, sinks_H=sinks_H, soft_cap=self.config.soft_cap)


@dataclasses.dataclass(frozen=True)
class SharedKeys:
    """The keys and values that go from layer to layer: which a layer reads, and which it hands on.

    Attributes:
      kv_in, kv_out: names, as in `AttentionConfig`.
    """

    kv_in: str | None
    kv_out: str | None

    @property
    def own(self) -> bool:
        """Whether the layer makes keys and values."""
        return self.kv_in is None

    def read(self, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """(k_BTGK, v_BTGV) of the layer below."""
        k_BTGK, v_BTGV = (context.cross_layer[name] for name in _channels(self.kv_in))
        return k_BTGK, v_BTGV

    def cache(self, context: SequenceContext, own: TokenCache | tuple[()]) -> TokenCache:
        """The layer's cache of past tokens: its own, or that of the layer below."""
        return own if self.own else context.caches[self.kv_in]

    def hand_on(
        self,
        context: SequenceContext,
        k_BTGK: jax.Array,
        v_BTGV: jax.Array,
        cache: TokenCache | None = None,
    ) -> None:
        """Puts the layer's keys, values and cache where layers above read them."""
        arrays = dict(zip(_channels(self.kv_out), (k_BTGK, v_BTGV), strict=True))
        context.hand_on(self.kv_out, arrays, cache)


class SigmoidGate(nnx.Module):
    """y * sigmoid(W x), element by element (arXiv 2505.06708; Qwen3-Next)."""

    def __init__(self, width: int, heads: int, size: int, *, rngs: nnx.Rngs):
        self.proj = Linear(width, heads * size, ("embed", "heads"), rngs=rngs)

    def __call__(self, y_BTHV: jax.Array, x_BTD: jax.Array) -> jax.Array:
        return y_BTHV * jax.nn.sigmoid(self.proj(x_BTD)).reshape(y_BTHV.shape)


class HeadGate(nnx.Module):
    """y * sigmoid(w_h x): one gate per head (arXiv 2505.06708, head-wise)."""

    def __init__(self, width: int, heads: int, size: int, *, rngs: nnx.Rngs):
        del size
        self.proj = Linear(width, heads, ("embed", "heads"), rngs=rngs)

    def __call__(self, y_BTHV: jax.Array, x_BTD: jax.Array) -> jax.Array:
        return y_BTHV * jax.nn.sigmoid(self.proj(x_BTD))[..., None]


class WholeRMSNorm(RMSNorm):
    """RMSNorm over the channels of all heads (OLMo 2, arXiv 2501.00656 sec. 3.2)."""

    def __call__(self, x_BTHK: jax.Array) -> jax.Array:
        x_BTC = x_BTHK.reshape(*x_BTHK.shape[:-2], -1)
        return super().__call__(x_BTC).reshape(x_BTHK.shape)


class Sinks(nnx.Module):
    """One logit per head, initially 0: it acts as one more key whose value is 0."""

    def __init__(self, heads: int):
        self.logits = nnx.Param(jnp.zeros(heads), axes=("heads",))


QK_NORMS = {
    False: lambda heads, size, eps: Identity(),
    True: lambda heads, size, eps: RMSNorm(size, eps),
    "unit_offset": lambda heads, size, eps: UnitOffsetRMSNorm(size, eps),
    "l2": lambda heads, size, eps: UnitRMS(eps),
    "whole": lambda heads, size, eps: WholeRMSNorm(heads * size, eps),
}
OUTPUT_GATES = {
    False: lambda width, heads, size, *, rngs: Identity(),
    True: SigmoidGate,
    "head": HeadGate,
}


def _channels(name: str) -> tuple[str, str]:
    """The names in `SequenceContext.cross_layer` of keys and values."""
    return f"{name}.keys", f"{name}.values"


def _with_past(context: SequenceContext, past_ids_BS: jax.Array) -> SequenceContext:
    """The context of past tokens followed by new ones.

    Positions of past tokens are right in the document that the first new token continues. In earlier
    documents they are not, which changes nothing: no new token sees those.
    """
    back_1S = jnp.arange(past_ids_BS.shape[1], 0, -1, dtype=jnp.int32)[None]
    return context._replace(
        segment_ids_BT=jnp.concatenate([past_ids_BS, context.segment_ids_BT], axis=1),
        positions_BT=jnp.concatenate(
            [context.positions_BT[:, :1] - back_1S, context.positions_BT], axis=1
        ),
    )


def _divisors(n: int) -> str:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return ", ".join(str(d) for d in sorted({*small, *(n // d for d in small)}))

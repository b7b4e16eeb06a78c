"""Native Hybrid Attention: one softmax over a window of tokens and slots of earlier tokens."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.mixers import patterns, rows
from hybridlm.models.mixers.attention import mean_keys
from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.models.mixers.capabilities import AttentionMixer
from hybridlm.models.mixers.gsa import GSA, GSAConfig
from hybridlm.models.mixers.token_cache import check_capacity
from hybridlm.models.positional import Rope, RopeConfig, check_rope, no_rope
from hybridlm.parallel import ops
from hybridlm.settings.bounds import AtLeast, Between, settings
from hybridlm.settings.reader import require
from kernels_pallas import segments
from kernels_pallas.attention import AttentionState
from kernels_pallas.context import delay
from kernels_pallas.gated_slots import NEGATIVE, SlotState

Pair = tuple[jax.Array, jax.Array]  # (out_BTHV, lse_BTH) of a softmax over some of the entries
WindowSize = Annotated[int, AtLeast(0, note="gated slot attention", none="for all tokens")]


@settings
class NHAConfig(GSAConfig):
    """Native Hybrid Attention.

    The defaults are the from-scratch form; a transformer is hybridised with swish_qk, swish_v and
    output_norm False and scale None.

    Attributes:
      window: tokens a query sees exactly, its own included; what leaves the window is written into
        the slots. 0 is gated slot attention; None keeps every token and leaves the slots empty.
      rope: RoPE's settings, on the window's queries and keys alone, or None for NoPE.
      slot_usage_weight: weight of the auxiliary loss BCE(logit of the slots' share,
        slot_usage_target), through the slots alone; 0 is none.
      slot_usage_target: the share of each softmax that the loss wants on the slots.
    """

    kind_name: ClassVar[str] = "nha"
    other_names: ClassVar[Mapping[str, str]] = {
        "native_hybrid_attention": "",
    }
    equation: ClassVar[str] = (
        "o_t = softmax([M^K_t q_t; RoPE(K_win) RoPE(q_t)]) [M^V_t; V_win],"
        " M_t = Diag(a_u) M_{t-1} + (1 - a_u) [k_u; v_u]^T, u = t - W"
    )
    source: ClassVar[str] = "arXiv 2510.07019"
    operations: ClassVar[tuple[str, ...]] = ("attention", "gated_slots")

    window: WindowSize | None = 32
    rope: RopeConfig | None = RopeConfig()
    slot_usage_weight: Annotated[float, AtLeast(0, note="no loss")] = 0.0
    slot_usage_target: Annotated[float, Between(0, 1, low_open=True, high_open=True)] = 0.5

    def __post_init__(self):
        super().__post_init__()
        require(
            self.slot_usage_weight == 0 or bool(self.window),
            "slot_usage_weight",
            f"weighs slots against a window, and window is {self.window}: use 0",
        )
        if self.head_dim is not None:
            check_rope(self.rope, self.head_dim)

    def check_width(self, width: int) -> None:
        super().check_width(width)
        check_rope(self.rope, self.head_size(width))

    def reach(self, seq_len: int) -> int | None:
        return (seq_len if self.window is None else min(self.window, seq_len)) or None

    @property
    def has_loss(self) -> bool:
        return self.slot_usage_weight > 0

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "NHA":
        return NHA(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        flops = self.projection_flops(width)
        if self.window is None or self.window > 0:
            keys = mean_keys(seq_len, self.window)
            flops += 4 * self.heads * self.head_size(width) * keys
        if self.window is None or self.window >= seq_len:  # nothing ever leaves the window
            return flops
        return flops + self.slot_flops(width)

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        tokens = seq_len if self.window is None else min(seq_len, self.window)
        per_token = 2 * self.head_size(width) * itemsize + 4 * self.slots  # the gate is float32
        return super().state_bytes(width, seq_len) + tokens * self.kv_heads * per_token

    @property
    def mechanism(self) -> str:
        span = "full" if self.window is None else f"window {self.window}"
        return f"native hybrid attention, {span}, {self.slots} slots"


class RecentTokens(NamedTuple):
    """The last S tokens, oldest first; segment id 0 marks an empty entry.

    Attributes:
      k_BSGK: keys as projected, without rotation or feature map; v_BSGV: values.
      log_gate_BSGM: float32, applied when the token leaves the window.
      segment_ids_BS, positions_BS: int32.
    """

    k_BSGK: jax.Array
    v_BSGV: jax.Array
    log_gate_BSGM: jax.Array
    segment_ids_BS: jax.Array
    positions_BS: jax.Array


class NHAState(NamedTuple):
    """The slots, and the tokens in the last token's window."""

    slots: SlotState
    recent: RecentTokens


class NHA(AttentionMixer, GSA):
    """The mixer of `NHAConfig`."""

    def __init__(self, config: NHAConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        super().__init__(config, spec, rngs=rngs)
        self.rope = Rope(config.rope, self.size) if config.rope else no_rope

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self._merged(*self._parallel(x_BTD, context), context)

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """The output, and the weighted loss on the slots' share, a mean over real tokens."""
        slots, window, read = self._parallel(x_BTD, context)
        target = self.config.slot_usage_target
        # A softmax over tokens alone or slots alone has no share to train.
        both_BTH = (slots[1] > NEGATIVE / 2) & (window[1] > NEGATIVE / 2)
        logit_BTH = jnp.where(both_BTH, slots[1] - jax.lax.stop_gradient(window[1]), 0)
        bce_BTH = jnp.where(both_BTH, jax.nn.softplus(logit_BTH) - target * logit_BTH, 0)
        real = jnp.sum(context.segment_ids_BT != 0)
        mean = jnp.sum(bce_BTH) / (jnp.maximum(real, 1) * self.config.heads)
        y_BTD = self._merged(slots, window, read, context)
        return y_BTD, self.config.slot_usage_weight * mean

    @property
    def slot_heads(self) -> int:
        return self.config.heads

    def slot_share(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        slots, window, _ = self._parallel(x_BTD, context)
        real_BT1 = (context.segment_ids_BT != 0)[:, :, None]
        return jnp.where(real_BT1, jax.nn.sigmoid(slots[1] - window[1]), 0)

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> rows.AttentionRows:
        """The window's part of each softmax; the rest, up to 1, is on the slots."""
        q_BTHK, tokens = self._tokens(x_BTD, context)
        visible_B1QT = rows.visible_keys(context.segment_ids_BT, rows_BQ, self._window)
        q_BQHK = rows.take(self.rope(q_BTHK, context.positions_BT), rows_BQ)
        k_BTGK = self._rotated(tokens)
        within = rows.probabilities(q_BQHK, k_BTGK, visible_B1QT, scale=self.scale)
        share_BQH = rows.take(self.slot_share(x_BTD, context), rows_BQ)
        tokens_BHQ1 = jnp.moveaxis(1 - share_BQH, 2, 1)[..., None]
        return within._replace(probs_BHQT=within.probs_BHQT * tokens_BHQ1)

    @property
    def _window(self) -> int | jax.Array | None:
        """Tokens that a query sees exactly, in the parallel form."""
        return self.config.window

    @property
    def has_window(self) -> bool:
        return bool(self.config.window) or self.config.window is None

    def narrowed(self, window: int) -> "NHA":
        """Tokens leave the narrower window earlier, and are written into the slots then."""
        copy, own = nnx.clone(self), self.config.window
        narrower = window if own is None else min(window, own)
        copy.config = dataclasses.replace(self.config, window=narrower)
        return copy

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> NHAState:
        """The state before the first of at most `max_len` tokens."""
        window = self.config.window
        capacity = max_len if window is None else min(max_len, window)
        return NHAState(self._empty_slots(batch, dtype), self._no_tokens(batch, capacity, dtype))

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: NHAState
    ) -> tuple[jax.Array, NHAState]:
        before, capacity = state.recent, state.recent.k_BSGK.shape[1]
        check_capacity(capacity, x_BTD.shape[1], self.config.window)
        q_BTHK, new = self._tokens(x_BTD, context)
        tokens, time = _concatenated(before, new), x_BTD.shape[1]
        number_BS = document_numbers(tokens.segment_ids_BS)
        leaving = jax.tree.map(lambda x: x[:, :time], tokens._replace(segment_ids_BS=number_BS))
        slots, slot_state = self._read_slots(
            q_BTHK, leaving, number_BS[:, -time:], context, state.slots
        )
        past = AttentionState(self._rotated(before), before.v_BSGV, before.segment_ids_BS)
        window = self._attend(q_BTHK, new, past)
        recent = jax.tree.map(lambda x: x[:, x.shape[1] - capacity :], tokens)
        return self._output(merge(slots, window)), NHAState(slot_state, recent)

    def _parallel(
        self, x_BTD: jax.Array, context: SequenceContext
    ) -> tuple[Pair, Pair, tuple[jax.Array, RecentTokens]]:
        """(out, lse) of the slots and of the window, for whole sequences, and what they read."""
        q_BTHK, tokens = self._tokens(x_BTD, context)
        window_pair = self._attend(q_BTHK, tokens, None)
        window = self.config.window
        if window is None or window >= x_BTD.shape[1]:  # nothing ever leaves the window
            return self._null_slots(q_BTHK, context), window_pair, (q_BTHK, tokens)
        number_BT = document_numbers(context.segment_ids_BT)
        leaving = _delay(tokens._replace(segment_ids_BS=number_BT), window)
        slots_pair, _ = self._read_slots(q_BTHK, leaving, number_BT, context, None)
        return slots_pair, window_pair, (q_BTHK, tokens)

    def _merged(
        self,
        slots: Pair,
        window: Pair,
        read: tuple[jax.Array, RecentTokens],
        context: SequenceContext,
    ) -> jax.Array:
        """The mixer's output, of one softmax over the entries of both."""
        if context.hooks is None:
            return self._output(merge(slots, window))
        (q_BTHK, tokens), positions_BT = read, context.positions_BT

        def visible(rows_BQ: jax.Array) -> jax.Array:
            return rows.visible_keys(context.segment_ids_BT, rows_BQ, self._window)

        rotated_BTHK = self.rope(q_BTHK, positions_BT)
        scores = patterns.scores(
            context, rotated_BTHK, self._rotated(tokens), visible, scale=self.scale
        )
        edited = context.edits(patterns.SCORES)
        window_lse_BTH = scores.lse_BTH if edited else window[1]
        share_BTH = jax.nn.sigmoid(slots[1] - window_lse_BTH)
        on_tokens_BTH = jax.nn.sigmoid(window_lse_BTH - slots[1])
        share_BTH = context.hook("hook_slot_share", share_BTH)
        if context.edits("hook_slot_share"):
            on_tokens_BTH = 1 - share_BTH
        window_BTHV = patterns.attended(
            context,
            window[0] * on_tokens_BTH[..., None],
            tokens.v_BSGV,
            scores,
            share_BTH=on_tokens_BTH,
        )
        out_BTHV = context.within("slots").hook("hook_z", slots[0] * share_BTH[..., None])
        out_BTHV += context.within("window").hook("hook_z", window_BTHV)
        return self._output(context.hook("hook_z", out_BTHV.astype(q_BTHK.dtype)))

    def _tokens(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, RecentTokens]:
        q_BTHK, *tokens = self._project(x_BTD, context)
        return q_BTHK, RecentTokens(*tokens, context.segment_ids_BT, context.positions_BT)

    def _read_slots(
        self,
        q_BTHK: jax.Array,
        leaving: RecentTokens,
        number_BT: jax.Array,
        context: SequenceContext,
        state: SlotState | None,
    ) -> tuple[Pair, SlotState]:
        """(out, lse) of slots: a query reads them after the token that leaves its window is written.

        `number_BT` numbers the documents, 0 for padding; `leaving` holds such numbers, not ids.
        """
        # Tokens of earlier documents are not written: the slots are those of the query's document.
        same_BT = leaving.segment_ids_BS == number_BT
        out_BTHV, lse_BTH, state = ops.gated_slots(
            self.feature_map(q_BTHK),
            self.feature_map(leaving.k_BSGK),
            leaving.v_BSGV,
            leaving.log_gate_BSGM,
            written_BT=same_BT & (number_BT != 0),
            segment_ids=context.segment_ids_BT,
            initial_state=state,
            return_state=True,
            **self._options(),
        )
        return (out_BTHV, lse_BTH), state

    def _null_slots(self, q_BTHK: jax.Array, context: SequenceContext) -> Pair:
        """(out, lse) of empty slots."""
        lse = NEGATIVE if self.config.empty_slots == "masked" else math.log(self.config.slots)
        lse_BT1 = jnp.where(context.segment_ids_BT != 0, lse, NEGATIVE)[:, :, None]
        dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
        lse_BTH = jnp.broadcast_to(lse_BT1.astype(dtype), q_BTHK.shape[:3])
        return jnp.zeros_like(q_BTHK), lse_BTH

    def _attend(self, q_BTHK: jax.Array, tokens: RecentTokens, past: AttentionState | None) -> Pair:
        """(out, lse) of the window, with rotated queries and keys."""
        if self.config.window == 0:
            dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
            return jnp.zeros_like(q_BTHK), jnp.full(q_BTHK.shape[:3], NEGATIVE, dtype)
        return ops.attention(
            self.rope(q_BTHK, tokens.positions_BS),
            self._rotated(tokens),
            tokens.v_BSGV,
            segment_ids=tokens.segment_ids_BS,
            window=self.config.window,
            scale=self.scale,
            initial_state=past,
        )

    def _rotated(self, tokens: RecentTokens) -> jax.Array:
        return self.rope(tokens.k_BSGK, tokens.positions_BS)

    def _no_tokens(self, batch: int, capacity: int, dtype: jnp.dtype) -> RecentTokens:
        def zeros(size: int, dtype: jnp.dtype) -> jax.Array:
            return jnp.zeros((batch, capacity, self.config.kv_heads, size), dtype)

        return RecentTokens(
            zeros(self.size, dtype),
            zeros(self.size, dtype),
            zeros(self.config.slots, jnp.promote_types(dtype, jnp.float32)),
            jnp.zeros((batch, capacity), jnp.int32),
            jnp.zeros((batch, capacity), jnp.int32),
        )


def merge(a: Pair, b: Pair) -> jax.Array:
    """One softmax over the entries of both, from the (out, lse) of each; exact.

    A side without entries (lse = -1e30) has weight 0 and passes no gradient. If neither has entries
    the result is 0, as both outputs are.
    """
    (a_BTHV, lse_a_BTH), (b_BTHV, lse_b_BTH) = a, b
    difference_BTH1 = (lse_a_BTH - lse_b_BTH)[..., None]
    out_BTHV = a_BTHV * jax.nn.sigmoid(difference_BTH1)
    out_BTHV += b_BTHV * jax.nn.sigmoid(-difference_BTH1)
    return out_BTHV.astype(a_BTHV.dtype)


def _concatenated(before: RecentTokens, new: RecentTokens) -> RecentTokens:
    return jax.tree.map(lambda b, n: jnp.concatenate([b, n.astype(b.dtype)], axis=1), before, new)


def document_numbers(ids_BS: jax.Array) -> jax.Array:
    """int32, a count of documents from 1; 0 for padding."""
    return jnp.where(ids_BS == 0, 0, segments.document_number(ids_BS))


_LETTERS = RecentTokens("BTH-", "BTH-", "BTH-", "BT", "BT")
# Replaces each token by the one that leaves its window.
_delay = ops.per_shard(delay, delay, dict(tokens=_LETTERS), (_LETTERS,))

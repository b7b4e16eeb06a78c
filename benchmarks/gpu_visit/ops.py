"""The calls that a visit times: inputs, our forms, forms of other projects, and their work.

Shapes are those of a layer of a 1B hybrid: one row, 16 heads of 128 (4 of keys and values where an
op shares them), 4,096 channels of the linear recurrence, 64 slots; bfloat16, gates in float32.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_visit import rivals
from benchmarks.gpu_visit.rivals import Rival
from kernels_pallas.attention import AttentionState, attention
from kernels_pallas.context.ring import merge
from kernels_pallas.delta_rule import delta_rule
from kernels_pallas.delta_rule.product import delta_product
from kernels_pallas.gated_linear import gated_linear
from kernels_pallas.gated_slots import SlotState, gated_slots
from kernels_pallas.linear_recurrence import gated_recurrence, linear_recurrence

WINDOWS = (128, 512, 1024, None)
DOCUMENT = 1024  # tokens, on average
SOFT_CAP = 5.0  # low enough to bend the logits of random inputs

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Sizes:
    heads: int = 16
    kv_heads: int = 4
    size: int = 128
    channels: int = 4096
    slots: int = 64
    value_size: int | None = None  # of the ops with a state, if it is not `size`

    @property
    def values(self) -> int:
        return self.value_size or self.size


@dataclasses.dataclass(frozen=True)
class Op:
    """One row of the tables.

    Attributes:
      inputs: names of arrays from `draw`, in the order of the arguments; all get gradients.
      ours: a function of impl, the inputs and segment ids (or None) that returns the output.
      rivals: by name, functions that create them (and import what they need).
      flops: a function of the documents' lengths: FLOPs of (the forward pass, forward and backward),
        only matrix products.
    """

    name: str
    inputs: tuple[str, ...]
    ours: Callable[..., jax.Array]
    rivals: Mapping[str, Callable[[], Rival]]
    flops: Callable[[Sequence[int], Sizes], tuple[float, float]]


def draw(
    names: Sequence[str], tokens: int, sizes: Sizes, seed: int = 0, document: int = DOCUMENT
) -> Arrays:
    """Inputs of an op, (1, tokens, ...): normal, keys normalised, decays of a fresh model; and the
    segment ids of documents of `document` tokens on average. Made on the device, one by one."""
    arrays = {name: _input(name, tokens, sizes, seed) for name in names}
    cuts = np.random.default_rng(seed).random(tokens) < 1 / document
    return {**arrays, "segment_ids": jnp.asarray(1 + np.cumsum(cuts), jnp.int32)[None]}


#: Keys of ops with a state, made 1 long.
KEYS = ("k", "removed", "k_one", "k_state", "k_rank", "k_updates")
FLOAT32 = ("v_state", "v_rank", "x_float32", "sinks")
OF_A_ROW = ("sinks", "fixed_decay")  # inputs without an axis of tokens
UPDATES, RANK = 2, 4


def _shape(name: str, sizes: Sizes) -> tuple[int, ...]:
    """Of one token. "state" is Mamba's: twice the heads, values of half the size."""
    heads, size, groups, double = sizes.heads, sizes.size, sizes.kv_heads, 2 * sizes.heads
    channels, of_head = (sizes.channels,), (heads,)
    return dict(
        k_shared=(groups, size),
        v_shared=(groups, size),
        v=(heads, sizes.values),
        x=channels,
        x_float32=channels,
        log_a=channels,
        log_a_bfloat16=channels,
        head_decay=of_head,
        fixed_decay=of_head,
        sinks=of_head,
        beta=of_head,
        slot_decay=(groups, sizes.slots),
        q_one=(1, size),
        k_one=(1, size),
        q_state=(double, size),
        k_state=(double, size),
        v_state=(double, size // 2),
        state_decay=(double,),
        q_rank=(RANK, double, size),
        k_rank=(RANK, double, size),
        v_rank=(RANK, double, size // 2),
        k_updates=(UPDATES, heads, size),
        v_updates=(UPDATES, heads, sizes.values),
        beta_updates=(UPDATES, heads),
    ).get(name, (heads, size))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _input(name: str, tokens: int, sizes: Sizes, seed: int) -> jax.Array:
    shape = _shape(name, sizes)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    if name not in OF_A_ROW:
        shape = (1, tokens, *shape)
    normal = jax.random.normal(key, shape, jnp.float32)
    if name.startswith(("beta", "erase")):
        return jax.nn.sigmoid(normal)
    if name.endswith("decay") or name.startswith("log_a"):
        decay = -jnp.exp(normal - 3)
        return decay.astype(jnp.bfloat16) if name.endswith("bfloat16") else decay
    if name.partition("_")[0] == "q":
        normal = normal * sizes.size**-0.5
    if name in KEYS:
        normal = normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)
    return normal if name in FLOAT32 else normal.astype(jnp.bfloat16)


# --- ours --------------------------------------------------------------------------------------


def _attention(window, impl, q, k, v, ids, **options):
    return attention(q, k, v, segment_ids=ids, window=window, scale=1.0, impl=impl, **options)


def _with_forget_gates(window, soft_cap, impl, q, k, v, decay, ids):
    options = dict(log_forget_BTH=decay, soft_cap=soft_cap)
    return _attention(window, impl, q, k, v, ids, **options)[0]


def _with_soft_cap(impl, *inputs):
    return _attention(512, impl, *inputs, soft_cap=SOFT_CAP)[0]


def _with_sinks(impl, q, k, v, sinks, ids):
    return _attention(512, impl, q, k, v, ids, sinks_H=sinks)[0]


def _of_an_array(impl, *inputs):
    return _attention(jnp.asarray(512, jnp.int32), impl, *inputs)[0]


def _after_a_state(impl, q, k, v, ids):
    """Behind the first 511 tokens again, as tokens of the first document."""
    before, own = slice(0, 511), _ids(q, ids)
    first = jnp.broadcast_to(own[:, :1], own[:, before].shape)
    state = AttentionState(k[:, before], v[:, before], first)
    return _attention(512, impl, q, k, v, own, initial_state=state)[0]


def _ids(x, ids):
    return jnp.ones(x.shape[:2], jnp.int32) if ids is None else ids


def _gated_linear(impl, q, k, v, decay, ids):
    return gated_linear(q, k, v, decay, segment_ids=ids, scale=1.0, impl=impl)


def _of_rank(impl, q, k, v, decay, ids):
    """Mamba-3's inputs of a token, each a step; the decay comes before the first."""
    batch, tokens = decay.shape[:2]
    flat = (x.reshape(batch, tokens * RANK, *x.shape[3:]) for x in (q, k, v))
    rest = ((0, 0), (0, 0), (0, RANK - 1), (0, 0))
    decay = jnp.pad(decay[:, :, None], rest).reshape(batch, tokens * RANK, -1)
    return _gated_linear(impl, *flat, decay, jnp.repeat(_ids(decay[:, ::RANK], ids), RANK, axis=1))


def _delta_rule(impl, q, k, v, beta, decay, ids):
    return delta_rule(q, k, v, beta, decay, segment_ids=ids, scale=1.0, impl=impl)


def _without_gate(impl, q, k, v, beta, ids):
    return _delta_rule(impl, q, k, v, beta, None, ids)


def _with_erase_key(impl, q, k, v, erase, decay, ids):
    """Gated DeltaNet-2: the state is read at a gate times the key."""
    options = dict(erase_BTGK=(erase * k).astype(k.dtype), segment_ids=ids, scale=1.0, impl=impl)
    return delta_rule(q, k, v, None, decay, **options)


def _delta_product(impl, *inputs):
    *values, ids = inputs
    options = dict(segment_ids=_ids(values[0], ids), scale=1.0, impl=impl)
    return delta_product(delta_rule, *values, **options)


def _rwkv7(impl, q, k, v, removed, erase, decay, ids):
    """A removal at one key, read before the decay, and a write at another, as `models/mixers/rwkv7.py`."""
    before = (removed * erase * jnp.exp(-decay)).astype(k.dtype)
    keys, values = jnp.stack([removed, k], axis=2), jnp.stack([jnp.zeros_like(v), v], axis=2)
    erased = jnp.stack([before, jnp.zeros_like(before)], axis=2)
    options = dict(segment_ids=_ids(q, ids), scale=1.0, impl=impl, erase_BTNGK=erased)
    return delta_product(delta_rule, q, keys, values, None, decay, **options)


def _slots(impl, q, k, v, decay, ids):
    return gated_slots(q, k, v, decay, segment_ids=ids, scale=1.0, impl=impl)


def _slots_after_a_state(impl, q, k, v, decay, ids):
    """The slots begin with the first tokens' keys and values."""
    kept, own = decay.shape[-1], _ids(q, ids)
    first = (jnp.swapaxes(x[:, :kept], 1, 2) for x in (k, v))
    first = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in first)
    state = SlotState(*first, own[:, 0], jnp.ones(own.shape[:1], bool))
    return gated_slots(q, k, v, decay, segment_ids=own, scale=1.0, initial_state=state, impl=impl)[
        0
    ]


def _recurrence(impl, log_a, x, ids):
    return gated_recurrence(log_a, x, segment_ids=ids, impl=impl)


def _ungated_recurrence(impl, log_a, x, ids):
    return linear_recurrence(jnp.exp(log_a), x, segment_ids=ids, impl=impl)


def _native_hybrid(impl, q, k, v, decay, ids):
    """Slots and a window of 512 under one softmax. The delay of the slots has no cost and is left out."""
    return merge(_slots(impl, q, k, v, decay, ids), _attention(512, impl, q, k, v, ids))[0]


# --- work --------------------------------------------------------------------------------------


def documents(segment_ids: jax.Array) -> list[int]:
    """Tokens of each document of a row."""
    return np.unique(jax.device_get(segment_ids), return_counts=True)[1].tolist()


def pairs(tokens: int, window: int | None) -> int:
    """Visible (query, key) pairs of a document."""
    window = tokens if window is None else min(window, tokens)
    return tokens * window - window * (window - 1) // 2


def _attention_flops(window, lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    """Two products over the visible pairs, and five backward."""
    product = 2.0 * sum(pairs(n, window) for n in lengths) * sizes.heads * sizes.size
    return 2 * product, 7 * product


def _states_flops(of_token: float, lengths: Sequence[int]) -> tuple[float, float]:
    """A backward pass has two products for each write and read of a state, one per factor."""
    return sum(lengths) * of_token, 3 * sum(lengths) * of_token


def _state_flops(lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    """One write and one read of a K x V state per token."""
    return _states_flops(4.0 * sizes.heads * sizes.size * sizes.values, lengths)


def _mamba_flops(steps: int, lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    """Twice the heads, with values of half the size."""
    return _states_flops(4.0 * steps * sizes.heads * sizes.size**2, lengths)


def _delta_flops(lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    """One more read: the state's value for the key."""
    return _states_flops(6.0 * sizes.heads * sizes.size * sizes.values, lengths)


def _product_flops(products: int, lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    """So many writes and reads of a K x V state per token."""
    return _states_flops(2.0 * products * sizes.heads * sizes.size * sizes.values, lengths)


def _no_flops(lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    return 0.0, 0.0


def _after_a_state_flops(lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    """Every query of the first document sees 512 keys."""
    first, *others = lengths
    whole = 512 * first + sum(pairs(n, 512) for n in others)
    product = 2.0 * whole * sizes.heads * sizes.size
    return 2 * product, 7 * product


def _slot_flops(lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    """Two writes per head of keys and values, two reads per query head."""
    return _states_flops(4.0 * (sizes.kv_heads + sizes.heads) * sizes.size * sizes.slots, lengths)


def _native_hybrid_flops(lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    parts = _slot_flops(lengths, sizes), _attention_flops(512, lengths, sizes)
    return tuple(map(sum, zip(*parts)))


def _of_window(window: int | None) -> Op:
    return Op(
        "attention, full" if window is None else f"attention, window {window}",
        ("q", "k_shared", "v_shared"),
        lambda impl, *inputs: _attention(window, impl, *inputs)[0],
        {
            "cuDNN": functools.partial(rivals.cudnn, window),
            "cuDNN, packed": functools.partial(rivals.cudnn_packed, window),
            "jax-linear-attention": functools.partial(rivals.jla_attention, window),
        },
        functools.partial(_attention_flops, window),
    )


def _of_state(name, ours, inputs, gates, kind, module, function, flops) -> Op:
    """An op of q, k, v and `inputs` that two other projects have; they call the inputs `gates`."""
    return Op(
        name,
        ("q", "k", "v", *inputs),
        ours,
        {
            "jax-linear-attention": functools.partial(rivals.jla, kind, gates),
            "flash-linear-attention": functools.partial(rivals.fla, module, function, gates),
        },
        flops,
    )


ATTENTION, SLOTS = ("q", "k_shared", "v_shared"), ("q", "k_shared", "v_shared", "slot_decay")
_512, _FULL = (functools.partial(_attention_flops, window) for window in (512, None))
#: What a layer of some model calls beyond the ops of the main tables: other kernels, or other branches.
MORE = (
    Op(
        "attention, window 512, forget gates",
        (*ATTENTION, "head_decay"),
        functools.partial(_with_forget_gates, 512, None),
        {},
        _512,
    ),
    Op(
        "attention, full, forget gates",
        (*ATTENTION, "head_decay"),
        functools.partial(_with_forget_gates, None, None),
        {
            "flash-linear-attention": functools.partial(
                rivals.fla, "forgetting_attn", "parallel_forgetting_attn", ("g",)
            )
        },
        _FULL,
    ),
    Op(
        "attention, window 512, forget gates and soft cap",
        (*ATTENTION, "head_decay"),
        functools.partial(_with_forget_gates, 512, SOFT_CAP),
        {},
        _512,
    ),
    Op("attention, window 512, soft cap", ATTENTION, _with_soft_cap, {}, _512),
    Op("attention, window 512, sinks", (*ATTENTION, "sinks"), _with_sinks, {}, _512),
    Op("attention, window 512 as an array", ATTENTION, _of_an_array, {}, _512),
    Op("attention, window 512 after a state", ATTENTION, _after_a_state, {}, _after_a_state_flops),
    Op(
        "gated_linear, fixed decay",
        ("q", "k", "v", "fixed_decay"),
        _gated_linear,
        {},
        _state_flops,
    ),
    Op(
        "gated_linear, Mamba-2",
        ("q_one", "k_one", "v_state", "state_decay"),
        _gated_linear,
        {},
        functools.partial(_mamba_flops, 1),
    ),
    Op(
        "gated_linear, Mamba-3",
        ("q_state", "k_state", "v_state", "state_decay"),
        _gated_linear,
        {},
        functools.partial(_mamba_flops, 1),
    ),
    Op(
        "gated_linear, Mamba-3 of rank 4",
        ("q_rank", "k_rank", "v_rank", "state_decay"),
        _of_rank,
        {},
        functools.partial(_mamba_flops, RANK),
    ),
    _of_state(
        "delta_rule, no gate",
        _without_gate,
        ("beta",),
        ("beta",),
        "deltanet",
        "delta_rule",
        "chunk_delta_rule",
        _delta_flops,
    ),
    Op(
        "delta_rule, erase key, gate per head",
        ("q", "k", "v", "erase", "head_decay"),
        _with_erase_key,
        {},
        _delta_flops,
    ),
    Op(
        "delta_rule, erase key, gate per channel",
        ("q", "k", "v", "erase", "channel_decay"),
        _with_erase_key,
        {"jax-linear-attention": rivals.jla_gdn2},
        _delta_flops,
    ),
    Op(
        "delta_product, 2 updates",
        ("q", "k_updates", "v_updates", "beta_updates", "head_decay"),
        _delta_product,
        {"jax-linear-attention": rivals.jla_delta_product},
        functools.partial(_product_flops, 2 * UPDATES + 1),
    ),
    Op(
        "delta_product, RWKV-7",
        ("q", "k", "v", "removed", "erase", "channel_decay"),
        _rwkv7,
        {"jax-linear-attention": rivals.jla_rwkv7},
        functools.partial(_product_flops, 4),
    ),
    Op("linear_recurrence, no gate", ("log_a", "x_float32"), _ungated_recurrence, {}, _no_flops),
    Op(
        "linear_recurrence, RG-LRU's gate, float32",
        ("log_a", "x_float32"),
        _recurrence,
        {},
        _no_flops,
    ),
    Op(
        "linear_recurrence, RG-LRU's gate, bfloat16",
        ("log_a_bfloat16", "x"),
        _recurrence,
        {},
        _no_flops,
    ),
    Op("gated_slots, after a state", SLOTS, _slots_after_a_state, {}, _slot_flops),
)
OPS = (
    *map(_of_window, WINDOWS),
    _of_state(
        "gated_linear, gate per head",
        _gated_linear,
        ("head_decay",),
        ("g",),
        "simple_gla",
        "simple_gla",
        "chunk_simple_gla",
        _state_flops,
    ),
    _of_state(
        "gated_linear, gate per channel",
        _gated_linear,
        ("channel_decay",),
        ("g",),
        "gla",
        "gla",
        "chunk_gla",
        _state_flops,
    ),
    _of_state(
        "delta_rule, gate per head",
        _delta_rule,
        ("beta", "head_decay"),
        ("beta", "g"),
        "gated_deltanet",
        "gated_delta_rule",
        "chunk_gated_delta_rule",
        _delta_flops,
    ),
    _of_state(
        "delta_rule, gate per channel",
        _delta_rule,
        ("beta", "channel_decay"),
        ("beta", "g"),
        "kda",
        "kda",
        "chunk_kda",
        _delta_flops,
    ),
    Op(
        "linear_recurrence, RG-LRU's gate",
        ("log_a", "x"),
        _recurrence,
        {},
        _no_flops,
    ),
    Op(
        "gated_slots",
        ("q", "k_shared", "v_shared", "slot_decay"),
        lambda impl, *inputs: _slots(impl, *inputs)[0],
        {},
        _slot_flops,
    ),
    Op(
        "Native Hybrid Attention, window 512",
        ("q", "k_shared", "v_shared", "slot_decay"),
        _native_hybrid,
        {},
        _native_hybrid_flops,
    ),
    *MORE,
)


def by_name() -> dict[str, Op]:
    return {op.name: op for op in OPS}

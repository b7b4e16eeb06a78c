"""The calls that a visit times: inputs, our forms, forms of other projects, and their work.

Shapes are those of a layer of a 1B hybrid: one row, 16 heads of 128 (4 of keys and values where an
op shares them), 4,096 channels of the linear recurrence, 64 slots; bfloat16, gates in float32.
"""

import dataclasses
import functools
import importlib
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.attention import attention
from kernels_pallas.context.ring import merge
from kernels_pallas.delta_rule import delta_rule
from kernels_pallas.gated_linear import gated_linear
from kernels_pallas.gated_slots import gated_slots
from kernels_pallas.linear_recurrence import gated_recurrence

WINDOWS = (128, 512, 1024, None)
DOCUMENT = 1024  # tokens, on average

Arrays = dict[str, jax.Array]
Form = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Sizes:
    heads: int = 16
    kv_heads: int = 4
    size: int = 128
    channels: int = 4096
    slots: int = 64


@dataclasses.dataclass(frozen=True)
class Rival:
    """Another project's form of the same op.

    Attributes:
      form: a function of the op's inputs that returns its output; None if `torch_form` is given.
      torch_form: the same on torch tensors.
      documents: whether it takes segment ids, and so a row of several documents.
    """

    form: Form | None = None
    torch_form: Callable | None = None
    documents: bool = False


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


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _input(name: str, tokens: int, sizes: Sizes, seed: int) -> jax.Array:
    heads, size, groups = sizes.heads, sizes.size, sizes.kv_heads
    shape = dict(
        k_shared=(groups, size),
        v_shared=(groups, size),
        x=(sizes.channels,),
        log_a=(sizes.channels,),
        head_decay=(heads,),
        beta=(heads,),
        slot_decay=(groups, sizes.slots),
    ).get(name, (heads, size))
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    normal = jax.random.normal(key, (1, tokens, *shape), jnp.float32)
    if name == "beta":
        return jax.nn.sigmoid(normal)
    if name.endswith("decay") or name == "log_a":
        return -jnp.exp(normal - 3)
    if name == "q":
        normal = normal * size**-0.5
    if name == "k":
        normal = normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)
    return normal.astype(jnp.bfloat16)


# --- ours --------------------------------------------------------------------------------------


def _attention(window, impl, q, k, v, ids):
    return attention(q, k, v, segment_ids=ids, window=window, scale=1.0, impl=impl)


def _gated_linear(impl, q, k, v, decay, ids):
    return gated_linear(q, k, v, decay, segment_ids=ids, scale=1.0, impl=impl)


def _delta_rule(impl, q, k, v, beta, decay, ids):
    return delta_rule(q, k, v, beta, decay, segment_ids=ids, scale=1.0, impl=impl)


def _slots(impl, q, k, v, decay, ids):
    return gated_slots(q, k, v, decay, segment_ids=ids, scale=1.0, impl=impl)


def _native_hybrid(impl, q, k, v, decay, ids):
    """Slots and a window of 512 under one softmax. The delay of the slots has no cost and is left out."""
    return merge(_slots(impl, q, k, v, decay, ids), _attention(512, impl, q, k, v, ids))[0]


# --- rivals ------------------------------------------------------------------------------------


def _cudnn(window) -> Rival:
    options = {} if window is None else dict(local_window_size=(window - 1, 0))

    def form(q, k, v):
        return jax.nn.dot_product_attention(
            q, k, v, scale=1.0, is_causal=True, implementation="cudnn", **options
        )

    return Rival(form)


def _cudnn_packed(window) -> Rival:
    """cuDNN's attention over packed documents, which jax has no public call for: each document is
    given by its first token and its length."""
    theirs = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")

    def form(q, k, v, segment_ids):
        begins, lengths = _documents(segment_ids)
        return theirs.dot_product_attention(
            q,
            k,
            v,
            q_seqlen=lengths,
            kv_seqlen=lengths,
            q_offsets=begins,
            kv_offsets=begins,
            scale=1.0,
            mask_type=theirs.MaskType.PADDING_CAUSAL,
            sliding_window_length=window,
        )

    return Rival(form, documents=True)


def _documents(segment_ids: jax.Array, most: int = 256) -> tuple[jax.Array, jax.Array]:
    """(first tokens (1, most + 1), lengths (1, most)) of a row's documents, with the row's length after
    the last first token; -1 where there are fewer than `most` documents."""
    ids_T = segment_ids[0]
    starts_T = jnp.concatenate([jnp.ones(1, bool), ids_T[1:] != ids_T[:-1]])
    (begins,) = jnp.nonzero(starts_T, size=most + 1, fill_value=ids_T.shape[0])
    lengths = jnp.diff(begins)
    first_empty = jnp.arange(most + 1) > jnp.sum(starts_T)
    begins = jnp.where(first_empty, -1, begins)
    lengths = jnp.where(lengths > 0, lengths, -1)
    return begins[None].astype(jnp.int32), lengths[None].astype(jnp.int32)


def _jla_attention(window) -> Rival:
    theirs = importlib.import_module("jla.layers.attention").attention

    def form(q, k, v, segment_ids=None):
        return theirs(
            q,
            k,
            v,
            segment_ids=segment_ids,
            sliding_window=window,
            scale=1.0,
            implementation="mosaic_gpu",
        )

    return Rival(form, documents=True)


def _jla(kind: str, gates: tuple[str, ...]) -> Rival:
    theirs = importlib.import_module("jla.ops").linear_attention

    def form(q, k, v, *values, segment_ids=None):
        options = dict(zip(gates, values))
        return theirs(
            kind, q, k, v, impl="mosaic_gpu", scale=1.0, segment_ids=segment_ids, **options
        )[0]

    return Rival(form, documents=True)


def _fla(module: str, function: str, gates: tuple[str, ...]) -> Rival:
    theirs = getattr(importlib.import_module(f"fla.ops.{module}"), function)

    def torch_form(*tensors):
        return theirs(**dict(zip(("q", "k", "v", *gates), tensors)), scale=1.0)[0]

    return Rival(torch_form=torch_form)


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
    return _states_flops(4.0 * sizes.heads * sizes.size**2, lengths)


def _delta_flops(lengths: Sequence[int], sizes: Sizes) -> tuple[float, float]:
    """One more read: the state's value for the key."""
    return _states_flops(6.0 * sizes.heads * sizes.size**2, lengths)


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
            "cuDNN": functools.partial(_cudnn, window),
            "cuDNN, packed": functools.partial(_cudnn_packed, window),
            "jax-linear-attention": functools.partial(_jla_attention, window),
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
            "jax-linear-attention": functools.partial(_jla, kind, gates),
            "flash-linear-attention": functools.partial(_fla, module, function, gates),
        },
        flops,
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
        lambda impl, log_a, x, ids: gated_recurrence(log_a, x, segment_ids=ids, impl=impl),
        {},
        lambda lengths, sizes: (0.0, 0.0),
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
)


def by_name() -> dict[str, Op]:
    return {op.name: op for op in OPS}

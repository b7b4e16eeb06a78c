"""Other projects' forms of the ops that a visit times. What they need is imported when one is made."""

import dataclasses
import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Rival:
    """Another project's form of the same op.

    Attributes:
      form: a function of the op's inputs that returns its output; None if `torch_form` is given.
      torch_form: the same on torch tensors.
      documents: whether it takes segment ids, and so a row of several documents.
    """

    form: Callable[..., jax.Array] | None = None
    torch_form: Callable | None = None
    documents: bool = False


def cudnn(window) -> Rival:
    options = {} if window is None else dict(local_window_size=(window - 1, 0))

    def form(q, k, v):
        return jax.nn.dot_product_attention(
            q, k, v, scale=1.0, is_causal=True, implementation="cudnn", **options
        )

    return Rival(form)


def cudnn_packed(window) -> Rival:
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


def jla_attention(window) -> Rival:
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


def jla(kind: str, gates: tuple[str, ...]) -> Rival:
    theirs = importlib.import_module("jla.ops").linear_attention

    def form(q, k, v, *values, segment_ids=None):
        options = dict(zip(gates, values))
        return theirs(
            kind, q, k, v, impl="mosaic_gpu", scale=1.0, segment_ids=segment_ids, **options
        )[0]

    return Rival(form, documents=True)


def jla_gdn2() -> Rival:
    """Gated DeltaNet-2, whose gate of the values is 1."""
    theirs = importlib.import_module("jla.ops").linear_attention

    def form(q, k, v, erase, decay, segment_ids=None):
        gates = dict(g=decay, b=erase.astype(k.dtype), w=jnp.ones_like(v))
        options = dict(impl="mosaic_gpu", scale=1.0, segment_ids=segment_ids)
        return theirs("gdn2", q, k, v, **gates, **options)[0]

    return Rival(form, documents=True)


def jla_delta_product() -> Rival:
    """The updates of a token stand one behind the other."""
    theirs = importlib.import_module("jla.ops").linear_attention

    def form(q, k, v, beta, decay, segment_ids=None):
        batch, tokens, updates = beta.shape[:3]
        k, v, beta = (x.reshape(batch, tokens * updates, *x.shape[3:]) for x in (k, v, beta))
        options = dict(impl="mosaic_gpu", scale=1.0, segment_ids=segment_ids)
        return theirs("gated_deltaproduct", q, k, v, g=decay, beta=beta, **options)[0]

    return Rival(form, documents=True)


def jla_rwkv7() -> Rival:
    """The state is read before its decay, at `a`, and what it returns is added at `b`."""
    theirs = importlib.import_module("jla.ops").linear_attention

    def form(q, k, v, removed, erase, decay, segment_ids=None):
        gates = dict(w=decay, a=(removed * erase).astype(k.dtype), b=-removed)
        options = dict(impl="mosaic_gpu", scale=1.0, segment_ids=segment_ids)
        return theirs("rwkv7", q, k, v, **gates, **options)[0]

    return Rival(form, documents=True)


def fla(module: str, function: str, gates: tuple[str, ...]) -> Rival:
    theirs = getattr(importlib.import_module(f"fla.ops.{module}"), function)

    def torch_form(*tensors):
        found = theirs(**dict(zip(("q", "k", "v", *gates), tensors)), scale=1.0)
        return found[0] if isinstance(found, tuple) else found  # the state after the last token

    return Rival(torch_form=torch_form)

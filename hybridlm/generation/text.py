"""Generates text: prefill, then decoding one token at a time from per-layer caches."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.data import Tokenizer
from hybridlm.errors import RunError
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params

CHUNK = 32  # tokens per call of the decoding program, shown together
NOT_FINITE = -1  # in place of a token that is drawn from logits with NaN or infinity


class Sampling(NamedTuple):
    """How the next token is sampled.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_k: samples from the k likeliest tokens; None for all.
      top_p: samples from the smallest set of likeliest tokens whose probabilities sum to at least
        this, after top_k (nucleus sampling, arXiv 1904.09751); None for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def sample_token(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Samples (B,) int32 tokens from (B, V) logits."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # The bounds keep the temperature and the quotients of logits finite in float32.
    logits_BV = logits_BV / min(max(sampling.temperature, 1e-30), 1e30)
    vocab = logits_BV.shape[-1]
    if sampling.top_k is not None and sampling.top_k < vocab:
        kth_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= kth_B1, logits_BV, -jnp.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered_BV = -jnp.sort(-logits_BV, axis=-1)
        p_BV = jax.nn.softmax(ordered_BV, axis=-1)
        # Keep a token while the sum before it is below top_p; always keep the likeliest token.
        kept_BV = (jnp.cumsum(p_BV, axis=-1) - p_BV < sampling.top_p).at[:, 0].set(True)
        least_B1 = jnp.min(jnp.where(kept_BV, ordered_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


def generate_tokens(
    model: Model,
    params: Params,
    prompt: np.ndarray,
    count: int,
    sampling: Sampling = Sampling(),
    *,
    seed: int = 0,
    batch: int = 1,
    allowed_V: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Continues one prompt `batch` times.

    Args:
      prompt: (P,) int32, at least one token; a tokenizer's `bos_id` starts a document.
      count: number of tokens to generate.
      allowed_V: bool, the tokens that may be sampled; None for all.

    Yields:
      (batch, n) int32 pieces, `count` tokens in total; NOT_FINITE where the logits were not finite.
    """
    if len(prompt) == 0:
        raise ValueError("the prompt needs at least one token: begin with the tokenizer's bos_id")
    forbidden_1V = None if allowed_V is None else jnp.asarray(~allowed_V)[None, :]

    def draw(logits_BV: jax.Array, key: jax.Array) -> jax.Array:
        finite_B = jnp.all(jnp.isfinite(logits_BV), axis=-1)
        if forbidden_1V is not None:
            logits_BV = jnp.where(forbidden_1V, -jnp.inf, logits_BV)
        return jnp.where(finite_B, sample_token(logits_BV, key, sampling), NOT_FINITE)

    @jax.jit
    def prefill(params: Params, tokens_BT: jax.Array, state: Any, key: jax.Array):
        context = _context(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape[0])
        logits_BTV, state = model.bind(params).extend(tokens_BT, context, state)
        return draw(logits_BTV[:, -1], key), state

    @jax.jit
    def decode(params: Params, token_B: jax.Array, position: jax.Array, state: Any, keys: Any):
        module = model.bind(params)

        def one(carry: Any, key: jax.Array):
            token_B, position, state = carry
            context = _context(position[None], token_B.shape[0])
            logits_B1V, state = module.extend(token_B[:, None], context, state)
            token_B = draw(logits_B1V[:, 0], key)
            return (token_B, position + 1, state), token_B

        (_, _, state), tokens_TB = jax.lax.scan(one, (token_B, position, state), keys)
        return tokens_TB.T, state

    # All pieces have the same length, and the last is cut: a shorter one would compile again.
    pieces = -(-max(count - 1, 0) // CHUNK)
    keys = jax.random.split(jax.random.key(seed), 1 + pieces * CHUNK)
    tokens_BT = jnp.tile(jnp.asarray(prompt, jnp.int32)[None], (batch, 1))
    capacity = len(prompt) + len(keys)
    state = jax.jit(lambda: model.bind(params).init_decode(batch, capacity))()
    token_B, state = prefill(params, tokens_BT, state, keys[0])
    if count:
        yield np.asarray(token_B)[:, None]
    for made in range(1, count, CHUNK):
        position = jnp.int32(len(prompt) + made - 1)
        tokens_BN, state = decode(params, token_B, position, state, keys[made : made + CHUNK])
        token_B = tokens_BN[:, -1]
        yield np.asarray(tokens_BN)[:, : count - made]


def generate_text(
    model: Model,
    params: Params,
    tokenizer: Tokenizer,
    prompt: str,
    count: int,
    sampling: Sampling = Sampling(),
    *,
    seed: int = 0,
) -> Iterator[str]:
    """Continues a document that begins with `prompt`, and yields text until the document ends.

    Raises:
      RunError: if the model's logits are not finite.
    """
    ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(prompt)]).astype(np.int32)
    # Decode with the prompt: without it, a tokenizer may drop the first token's leading space.
    before = ids.tolist()
    allowed_V = np.arange(model.config.vocab_size) < tokenizer.vocab_size
    allowed_V[tokenizer.bos_id] = False
    made, shown = [], tokenizer.decode(before)
    for piece in generate_tokens(
        model, params, ids, count, sampling, seed=seed, allowed_V=allowed_V
    ):
        tokens = piece[0].tolist()
        ended = tokenizer.eos_id in tokens
        kept = tokens[: tokens.index(tokenizer.eos_id)] if ended else tokens
        if NOT_FINITE in kept:
            raise RunError(
                "the model's logits are not finite (NaN or infinity), so that no text can be sampled:"
                " take an earlier checkpoint with --step"
            )
        made += kept
        text = tokenizer.decode(before + made)
        # An incomplete UTF-8 character at the end is held back until its last byte.
        whole = text if ended else text.rstrip("\ufffd")
        if whole.startswith(shown) and len(whole) > len(shown):
            yield whole[len(shown) :]
            shown = whole
        if ended:
            return
    text = tokenizer.decode(before + made)
    if len(text) > len(shown):
        yield text[len(shown) :]


def _context(positions_T: jax.Array, batch: int) -> SequenceContext:
    positions_BT = jnp.broadcast_to(positions_T[None, :], (batch, positions_T.shape[0]))
    return SequenceContext(jnp.ones_like(positions_BT), positions_BT)

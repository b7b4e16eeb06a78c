"""Runs a model on samples: greedy cached decoding, likelihoods of continuations, string matches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import UserError
from hybridlm.evals.sample import Sample
from hybridlm.models.loss import loss_settings, token_nll
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model


def string_match_all(text: str, references: Sequence[str]) -> float:
    """Share of the references that `text` contains, ignoring case (RULER's metric but for qa)."""
    return sum(r.lower() in text.lower() for r in references) / len(references)


def string_match_any(text: str, references: Sequence[str]) -> float:
    """1 if `text` contains any reference, ignoring case, else 0 (RULER's metric for qa)."""
    return float(any(r.lower() in text.lower() for r in references))


METRICS = {"all": string_match_all, "any": string_match_any}
Pair = tuple[np.ndarray, np.ndarray]  # int32 tokens of a prompt and of its continuation
NOT_FINITE = -1  # in place of a token that no finite logits choose
NOT_FINITE_SENTENCE = (
    "the model's logits are not finite (NaN or infinity), so this has no figure: take an earlier"
    " checkpoint with --step"
)


def complete(
    model: Model,
    params: Params,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    *,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> list[str | None]:
    """Greedy continuations of samples, up to `tokens_to_generate` tokens or the end of document.

    None where logits on the way are not finite.

    Prompts of a batch are padded on the left. Padding belongs to no document, so each continuation
    is that of its prompt alone. BOS and ids past the tokenizer's vocabulary are never generated.
    """
    allowed_V = np.arange(model.config.vocab_size) < tokenizer.vocab_size
    allowed_V[tokenizer.bos_id] = False
    texts = []
    for start in range(0, len(samples), batch):
        group = list(samples[start : start + batch])
        count = max(s.tokens_to_generate for s in group)
        # Prompts are padded to the task's length, not the longest prompt: few shapes are compiled.
        prompt_length = max(s.length - s.tokens_to_generate for s in group)
        tokens_BT, ids_BT, positions_BT = _left_padded(
            [s.tokens for s in group], prompt_length, batch
        )
        made_BN = _greedy(model, dtype, count)(
            params, tokens_BT, ids_BT, positions_BT, jnp.asarray(allowed_V)
        )
        for sample, made in zip(group, np.asarray(made_BN).tolist()):
            made = made[: sample.tokens_to_generate]
            ended = made.index(tokenizer.eos_id) if tokenizer.eos_id in made else len(made)
            broken = NOT_FINITE in made[: ended + 1]
            texts.append(None if broken else tokenizer.decode(made[:ended]))
    return texts


class Likelihood(NamedTuple):
    """A continuation's `log_prob` in nats; `greedy`: whether each token was the likeliest."""

    log_prob: float
    greedy: bool


def continuation_pair(tokenizer: Tokenizer, context: str, continuation: str, length: int) -> Pair:
    """The tokens of BOS with a context, and of its continuation: at most `length` together.

    A context that is too long loses its beginning. Spaces at its end count to the continuation,
    because tokenizers put a space at the start of a word.

    Raises:
      UserError: if the continuation is empty, adds no token to the context, or is too long.
    """
    shown = f"the continuation {continuation[-40:]!r} of {context[-40:]!r}"
    if not continuation:
        raise UserError(f"{shown} is empty: it needs some text")
    bare = context.rstrip()
    whole = tokenizer.encode(bare + context[len(bare) :] + continuation)
    before = tokenizer.encode(bare) if bare else whole[:0]
    if np.array_equal(whole, before):  # a tokenizer may drop spaces
        raise UserError(f"{shown} adds no token to it: it needs some text")
    # Where a token spans the border, it counts to the continuation.
    cut = min(len(before), len(whole) - 1)
    answer = whole[cut:]
    if not len(answer) or len(answer) >= length:
        raise UserError(f"{shown} has {len(answer)} tokens: it needs 1 to {length - 1}")
    budget = length - len(answer) - 1
    kept = whole[max(cut - budget, 0) : cut] if budget else whole[:0]
    return np.concatenate([[tokenizer.bos_id], kept]).astype(np.int32), answer


def continuation_likelihoods(
    model: Model,
    params: Params,
    pairs: Sequence[Pair],
    *,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> list[Likelihood]:
    """ln p(continuation | prompt) of (prompt, continuation) token arrays, neither empty.

    Prompts should begin with BOS, as documents do in training.
    """
    found = []
    for start in range(0, len(pairs), batch):
        group = pairs[start : start + batch]
        if any(not len(p) or not len(c) for p, c in group):
            raise ValueError("a prompt or a continuation is empty: begin prompts with bos_id")
        whole = [np.concatenate(pair) for pair in group]
        length = -(-max(map(len, whole)) // 64) * 64  # few shapes, few programs
        tokens_BT, ids_BT, positions_BT = _left_padded(whole, length, batch)
        nll_BT, best_BT = map(
            np.asarray, _scored(model, dtype)(params, tokens_BT, ids_BT, positions_BT)
        )
        for row, (_, continuation) in enumerate(group):
            n = len(continuation)  # the last n targets of the row
            log_prob = -float(nll_BT[row, -n:].astype(np.float64).sum())
            found.append(Likelihood(log_prob, bool(best_BT[row, -n:].all())))
    return found


def likeliest(
    model: Model,
    params: Params,
    tokens_BT: np.ndarray,
    segment_ids_BT: np.ndarray,
    positions_BT: np.ndarray,
    *,
    dtype: jnp.dtype = jnp.float32,
) -> np.ndarray:
    """The likeliest next token after each token, int32 (B, T); NOT_FINITE where none can be told."""
    return np.asarray(_likeliest(model, dtype)(params, tokens_BT, segment_ids_BT, positions_BT))


def accuracy_table(title: str, rows: dict[str, dict[int, float]]) -> str:
    """A text table in per cent, with a row for each task and a column for each length."""
    lengths = sorted({length for row in rows.values() for length in row})
    width = max(len(title), *(len(name) for name in rows))
    lines = [title.ljust(width) + "".join(f"{length:>9,}" for length in lengths)]
    for name, row in rows.items():
        cells = (f"{100 * row[length]:>9.1f}" if length in row else " " * 9 for length in lengths)
        lines.append(name.ljust(width) + "".join(cells))
    return "\n".join(lines)


def _left_padded(
    rows: Sequence[np.ndarray], length: int, batch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, segment ids, positions), int32 (batch, length); the first row fills missing rows."""
    tokens_BT, ids_BT, positions_BT = np.zeros((3, batch, length), np.int32)
    for i in range(batch):
        row = rows[i] if i < len(rows) else rows[0]
        tokens_BT[i, length - len(row) :] = row
        ids_BT[i, length - len(row) :] = 1
        positions_BT[i, length - len(row) :] = np.arange(len(row))
    return tokens_BT, ids_BT, positions_BT


def _argmax(logits: jax.Array) -> jax.Array:
    """The likeliest token, int32 (...); NOT_FINITE where logits (..., V) hold NaN or +infinity.

    -infinity is a token that is not allowed.
    """
    finite = jnp.max(logits, axis=-1) < jnp.inf  # false for NaN, too
    return jnp.where(finite, jnp.argmax(logits, axis=-1), NOT_FINITE).astype(jnp.int32)


@per_model
def _greedy(model: Model, dtype: jnp.dtype, count: int):

    @jax.jit
    def run(
        params: Params,
        tokens_BT: jax.Array,
        ids_BT: jax.Array,
        positions_BT: jax.Array,
        allowed_V: jax.Array,
    ) -> jax.Array:
        module = model.bind(params)
        batch, time = tokens_BT.shape

        def choose(logits_BV: jax.Array) -> jax.Array:
            return _argmax(jnp.where(allowed_V, logits_BV, -jnp.inf))

        state = module.init_decode(batch, time + count, dtype)
        context = SequenceContext(ids_BT, positions_BT)
        logits_BTV, state = module.extend(tokens_BT, context, state, dtype=dtype)

        def step(carry: Any, _: None):
            token_B, position_B, state = carry
            ones = jnp.ones_like(token_B)[:, None]
            context = SequenceContext(ones, position_B[:, None])
            logits_B1V, state = module.extend(token_B[:, None], context, state, dtype=dtype)
            return (choose(logits_B1V[:, 0]), position_B + 1, state), token_B

        carry = (choose(logits_BTV[:, -1]), positions_BT[:, -1] + 1, state)
        _, made_NB = jax.lax.scan(step, carry, None, length=count)
        return made_NB.T

    return run


@per_model
def _likeliest(model: Model, dtype: jnp.dtype):

    @jax.jit
    def run(params: Params, tokens_BT: jax.Array, ids_BT: jax.Array, positions_BT: jax.Array):
        module = model.bind(params)
        context = SequenceContext(ids_BT, positions_BT)
        hidden_BTD = module.hidden(tokens_BT, context, dtype=dtype)
        return _argmax(module.logits(hidden_BTD))

    return run


@per_model
def _scored(model: Model, dtype: jnp.dtype):

    @jax.jit
    def run(params: Params, tokens_BT: jax.Array, ids_BT: jax.Array, positions_BT: jax.Array):
        """(nll, whether it was the likeliest) of tokens 1 to T - 1, each (B, T - 1)."""
        module = model.bind(params)
        context = SequenceContext(ids_BT, positions_BT)
        hidden_BTD = module.hidden(tokens_BT, context, dtype=dtype)[:, :-1]
        targets_BT = tokens_BT[:, 1:]
        nll_BT = token_nll(
            hidden_BTD, module.head_kernel(), targets_BT, loss_settings(model.config)
        )
        best_BT = jnp.argmax(module.logits(hidden_BTD), -1)
        return nll_BT, best_BT == targets_BT

    return run

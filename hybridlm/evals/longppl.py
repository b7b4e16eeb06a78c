"""LongPPL: perplexity over the tokens that need a long context (arXiv 2410.23771).

An evaluator scores each token twice: with all of its context, and with a truncated one. A token is
a key token where the long context gains it more than `alpha` nats (LSD, long-short difference) and
leaves it likelier than `beta` nats (LCL, long-context likelihood). LongPPL is the perplexity of the
model under test, with all of its context, over the key tokens:

    key_t   = (l_t - s_t > alpha) and (l_t > beta),    l, s: ln p of the evaluator, long and short
    LongPPL = exp(- mean over key tokens of ln p_model)

Defaults are those of the authors' package: alpha 2, beta -2, truncated contexts of trunc_len 4096
tokens that advance by sliding_window 1024. The evaluator may be the model itself ("own-model").
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.errors import UserError
from hybridlm.evals.heldout import heldout_documents
from hybridlm.evals.settings import SLIDING_WINDOW, TRUNC_LEN, EvalSettings
from hybridlm.evals.task import Record
from hybridlm.models.loss import loss_settings, token_nll
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.runs import OpenedModel, open_model

ALPHA, BETA = 2.0, -2.0  # nats


class LongPPL(NamedTuple):
    """Attributes:
    longppl: perplexity over key tokens, NaN where there is none.
    ppl: over all tokens, of the same model.
    key_tokens, tokens: their numbers.
    """

    longppl: float
    ppl: float
    key_tokens: int
    tokens: int


def key_tokens(
    long_T: np.ndarray, short_T: np.ndarray, alpha: float = ALPHA, beta: float = BETA
) -> np.ndarray:
    """Which tokens need the long context, from the evaluator's ln p of each: bool, same shape."""
    return (np.asarray(long_T) - np.asarray(short_T) > alpha) & (np.asarray(long_T) > beta)


def longppl(log_p_T: np.ndarray, key_T: np.ndarray) -> LongPPL:
    """LongPPL of a model's ln p, in its full context, over the key tokens; any equal shapes."""
    log_p_T, key_T = np.asarray(log_p_T, np.float64), np.asarray(key_T, bool)
    if log_p_T.shape != key_T.shape:
        raise ValueError(f"log_p has shape {log_p_T.shape}, the key tokens {key_T.shape}")
    count = int(key_T.sum())
    value = math.exp(-log_p_T[key_T].mean()) if count else math.nan
    whole = math.exp(-log_p_T.mean()) if log_p_T.size else math.nan
    return LongPPL(value, whole, count, log_p_T.size)


def truncated_start(
    index: np.ndarray, trunc_len: int = TRUNC_LEN, sliding_window: int = SLIDING_WINDOW
) -> np.ndarray:
    """Where the truncated context of a token begins, for tokens at these indices of a document.

    Starts advance by `sliding_window`, and the context has from `trunc_len` to trunc_len +
    sliding_window - 1 tokens; below index trunc_len + sliding_window it is the whole context.
    """
    past = np.maximum(np.asarray(index) - trunc_len, 0)
    return past // sliding_window * sliding_window


def long_log_probs(
    model: Model, params: Params, tokens_T: np.ndarray, dtype: jnp.dtype = jnp.float32
) -> np.ndarray:
    """ln p of tokens 1 to T - 1 after all tokens before them: float32 (T - 1,), nats."""
    length = -(-len(tokens_T) // 64) * 64  # few shapes, few programs
    return _log_probs(model, params, [np.asarray(tokens_T)], length, dtype)[0][: len(tokens_T) - 1]


def short_log_probs(
    model: Model,
    params: Params,
    tokens_T: np.ndarray,
    trunc_len: int = TRUNC_LEN,
    sliding_window: int = SLIDING_WINDOW,
    *,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> np.ndarray:
    """ln p of tokens 1 to T - 1 after their truncated contexts: float32 (T - 1,), nats.

    Truncated contexts are read as documents of their own: positions begin at 0, without BOS but
    for the first.
    """
    tokens_T = np.asarray(tokens_T)
    starts_T = truncated_start(np.arange(1, len(tokens_T)), trunc_len, sliding_window)
    starts, width = np.unique(starts_T), trunc_len + sliding_window
    out_T = np.zeros(len(tokens_T) - 1, np.float32)
    for i in range(0, len(starts), batch):
        chosen = starts[i : i + batch].tolist()
        pieces = [tokens_T[start : start + width] for start in chosen]
        pieces += [pieces[0]] * (batch - len(pieces) if len(starts) > batch else 0)
        scored = _log_probs(model, params, pieces, width, dtype)
        for start, log_p in zip(chosen, scored):
            mine = np.flatnonzero(starts_T == start)  # of targets mine + 1
            out_T[mine] = log_p[mine - start]
    return out_T


def model_longppl(
    model: Model,
    params: Params,
    documents: Sequence[np.ndarray],
    evaluator: tuple[Model, Params] | None = None,
    *,
    trunc_len: int = TRUNC_LEN,
    sliding_window: int = SLIDING_WINDOW,
    alpha: float = ALPHA,
    beta: float = BETA,
    dtype: jnp.dtype = jnp.float32,
) -> LongPPL:
    """LongPPL of a model over documents (tokens each, BOS first), pooled over their key tokens.

    Args:
      evaluator: finds the key tokens; must share the tokenizer. None: the model itself.

    Raises:
      UserError: where no document is longer than the truncated context.
    """
    if trunc_len < 1 or sliding_window < 1:
        raise UserError(
            f"longppl: trunc_len {trunc_len} and sliding_window {sliding_window} must be at least 1"
        )
    least = trunc_len + sliding_window + 1
    longest = max(map(len, documents), default=0)
    if longest < least:
        raise UserError(
            f"longppl: with trunc_len {trunc_len} and sliding_window {sliding_window} a document"
            f" needs {least} tokens and the longest has {longest}: take greater lengths or smaller"
            " values of these"
        )
    judge, judge_params = evaluator or (model, params)
    log_p, key = [], []
    for tokens in documents:
        judged = long_log_probs(judge, judge_params, tokens, dtype)
        short = short_log_probs(judge, judge_params, tokens, trunc_len, sliding_window, dtype=dtype)
        # Where both contexts are the same one, and rounding decides nothing.
        differs = truncated_start(np.arange(1, len(tokens)), trunc_len, sliding_window) > 0
        key.append(key_tokens(judged, short, alpha, beta) & differs)
        own = judged if evaluator is None else long_log_probs(model, params, tokens, dtype)
        log_p.append(own)
    return longppl(np.concatenate(log_p), np.concatenate(key))


def _log_probs(
    model: Model, params: Params, pieces: list[np.ndarray], length: int, dtype: jnp.dtype
) -> np.ndarray:
    """(pieces, length - 1); what lies past the end of a piece means nothing."""
    tokens_BT, ids_BT = np.zeros((2, len(pieces), length), np.int32)
    for row, piece in enumerate(pieces):
        tokens_BT[row, : len(piece)], ids_BT[row, : len(piece)] = piece, 1
    return np.asarray(_program(model, dtype)(params, tokens_BT, ids_BT))


@per_model
def _program(model: Model, dtype: jnp.dtype):

    @jax.jit
    def run(params: Params, tokens_BT: jax.Array, ids_BT: jax.Array) -> jax.Array:
        module = model.bind(params)
        positions_BT = jnp.broadcast_to(
            jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape
        )
        context = SequenceContext(ids_BT, positions_BT)
        hidden_BTD = module.hidden(tokens_BT, context, dtype=dtype)[:, :-1]
        return -token_nll(
            hidden_BTD, module.head_kernel(), tokens_BT[:, 1:], loss_settings(model.config)
        )

    return run


class Prepared(NamedTuple):
    """Held-out documents by length, and the model that finds the key tokens (None: the model)."""

    documents: dict[int, list[np.ndarray]]
    evaluator: tuple[Model, Params] | None


@dataclasses.dataclass(frozen=True)
class LongPPLTask:
    """The task, as the registry holds it (see `hybridlm.evals.task.Task`)."""

    name: str = "longppl"
    help: str = "perplexity over the tokens that need the long context"
    definition: str = (
        "exp of the mean −ln p over tokens that the long context makes likelier by more than 2 nats,"
        " to more than −2 nats; truncated contexts of `--trunc_len` 4096, advancing by"
        " `--sliding_window` 1024; key tokens found by the model itself, or by another one"
        " (`--evaluator`); arXiv 2410.23771"
    )
    needs: tuple[str, ...] = ()
    figure: str = "longppl"
    title: str = "LongPPL"

    def prepare(self, opened: OpenedModel, settings: EvalSettings) -> Prepared:
        evaluator = _evaluator(opened, settings)
        least = settings.trunc_len + settings.sliding_window + 1
        if min(settings.lengths) < least:
            raise UserError(
                f"longppl does not fit {min(settings.lengths)} tokens: with --trunc_len"
                f" {settings.trunc_len} and --sliding_window {settings.sliding_window} it needs"
                f" {least}"
            )
        documents = {
            length: heldout_documents(opened, length, settings.samples, self.name)
            for length in settings.lengths
        }
        return Prepared(documents, evaluator)

    def run(
        self, opened: OpenedModel, length: int, settings: EvalSettings, prepared: Prepared
    ) -> Record:
        """`longppl` (None without a key token), `ppl`, `key_tokens`, `tokens`, `documents`."""
        documents = prepared.documents[length]
        result = model_longppl(
            opened.model,
            opened.params,
            documents,
            prepared.evaluator,
            trunc_len=settings.trunc_len,
            sliding_window=settings.sliding_window,
            dtype=opened.dtype,
        )
        figures = {k: None if math.isnan(v) else v for k, v in result._asdict().items()}
        return {**figures, "documents": len(documents)}

    def headline(self, record: Record) -> str:
        shown = "no key token" if record["longppl"] is None else f"{record['longppl']:.4g}"
        return f"{shown} ({record['key_tokens']:,} of {record['tokens']:,} tokens)"


LONGPPL = LongPPLTask()


def _evaluator(opened: OpenedModel, settings: EvalSettings) -> tuple[Model, Params] | None:
    if settings.evaluator is None:
        return None
    other = open_model(settings.evaluator)
    if other.tokenizer.fingerprint != opened.tokenizer.fingerprint:
        raise UserError(
            f"--evaluator {settings.evaluator} has another tokenizer than the run: LongPPL compares"
            " the same tokens"
        )
    return other.model, other.params

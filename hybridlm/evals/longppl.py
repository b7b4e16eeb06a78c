"""LongPPL: perplexity over the tokens that need a long context (arXiv 2410.23771).

An evaluator scores each token twice: with its whole context and with a truncated context. A token
is a key token if the long context raises its log probability by more than `alpha` nats (LSD,
long-short difference) and its log probability in the long context exceeds `beta` nats (LCL,
long-context likelihood). LongPPL is the perplexity of the model under test, with the whole context,
over
the key tokens:

    key_t   = (l_t - s_t > alpha) and (l_t > beta),    l, s: ln p of the evaluator, long and short
    LongPPL = exp(- mean over key tokens of ln p_model)

The defaults are those of the authors' package: alpha 2, beta -2, truncated contexts of trunc_len
4096 tokens that advance by sliding_window 1024. The evaluator may be the model under test itself.
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
    longppl: perplexity over the key tokens; NaN if there are none.
    ppl: the same model's perplexity over all tokens.
    key_tokens, tokens: the number of key tokens and of all tokens.
    """

    longppl: float
    ppl: float
    key_tokens: int
    tokens: int


def key_tokens(
    long_T: np.ndarray, short_T: np.ndarray, alpha: float = ALPHA, beta: float = BETA
) -> np.ndarray:
    """Whether each token needs the long context, from the evaluator's ln p: bool, same shape."""
    return (np.asarray(long_T) - np.asarray(short_T) > alpha) & (np.asarray(long_T) > beta)


def longppl(log_p_T: np.ndarray, key_T: np.ndarray) -> LongPPL:
    """LongPPL from a model's ln p with the whole context; both arrays have the same shape."""
    log_p_T, key_T = np.asarray(log_p_T, np.float64), np.asarray(key_T, bool)
    if log_p_T.shape != key_T.shape:
        raise ValueError(f"log_p has shape {log_p_T.shape}, the key tokens {key_T.shape}")
    count = int(key_T.sum())
    with np.errstate(over="ignore"):  # a model that fits nothing has infinite perplexity
        value = float(np.exp(-log_p_T[key_T].mean())) if count else math.nan
        whole = float(np.exp(-log_p_T.mean())) if log_p_T.size else math.nan
    return LongPPL(value, whole, count, log_p_T.size)


def truncated_start(
    index: np.ndarray, trunc_len: int = TRUNC_LEN, sliding_window: int = SLIDING_WINDOW
) -> np.ndarray:
    """The index where the truncated context of the token at `index` of a document begins.

    Starts are multiples of `sliding_window`, so a truncated context has from trunc_len to
    trunc_len + sliding_window - 1 tokens. Below index trunc_len + sliding_window the context is not
    truncated.
    """
    past = np.maximum(np.asarray(index) - trunc_len, 0)
    return past // sliding_window * sliding_window


def long_log_probs(
    model: Model, params: Params, tokens_T: np.ndarray, dtype: jnp.dtype = jnp.float32
) -> np.ndarray:
    """ln p of tokens 1 to T - 1 given all earlier tokens: float32 (T - 1,), in nats."""
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
    """ln p of tokens 1 to T - 1 given their truncated contexts: float32 (T - 1,), in nats.

    Each truncated context is a document of its own: positions begin at 0, and only the first
    context has a BOS.
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
            mine = np.flatnonzero(starts_T == start)  # the targets are tokens mine + 1
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
    """LongPPL of a model, pooled over the key tokens of all documents (token arrays, BOS first).

    Args:
      evaluator: finds the key tokens; must share the tokenizer. None means the model itself.

    Raises:
      UserError: if no document is longer than a truncated context.
    """
    if trunc_len < 1 or sliding_window < 1:
        raise UserError(
            f"longppl: trunc_len {trunc_len} and sliding_window {sliding_window} must be at least 1"
        )
    needed = trunc_len + sliding_window + 1
    longest = max(map(len, documents), default=0)
    if longest < needed:
        raise UserError(
            f"longppl: with trunc_len {trunc_len} and sliding_window {sliding_window} a document"
            f" needs {needed} tokens and the longest has {longest}: use longer documents or smaller"
            " values"
        )
    judge, judge_params = evaluator or (model, params)
    log_p, key = [], []
    for tokens in documents:
        judged = long_log_probs(judge, judge_params, tokens, dtype)
        short = short_log_probs(judge, judge_params, tokens, trunc_len, sliding_window, dtype=dtype)
        # Excludes tokens whose two contexts are the same: only rounding would separate them.
        differs = truncated_start(np.arange(1, len(tokens)), trunc_len, sliding_window) > 0
        key.append(key_tokens(judged, short, alpha, beta) & differs)
        own = judged if evaluator is None else long_log_probs(model, params, tokens, dtype)
        log_p.append(own)
    return longppl(np.concatenate(log_p), np.concatenate(key))


def _log_probs(
    model: Model, params: Params, pieces: list[np.ndarray], length: int, dtype: jnp.dtype
) -> np.ndarray:
    """ln p, (pieces, length - 1); entries past the end of a piece are meaningless."""
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
    """Held-out documents by length, and the evaluator (None: the model under test)."""

    documents: dict[int, list[np.ndarray]]
    evaluator: tuple[Model, Params] | None


@dataclasses.dataclass(frozen=True)
class LongPPLTask:
    """The registered task (see `hybridlm.evals.task.Task`)."""

    name: str = "longppl"
    help: str = "perplexity over the tokens that need the long context"
    definition: str = (
        "exp of the mean −ln p over key tokens: those whose ln p the long context raises by more than"
        " 2 nats, to above −2 nats; truncated contexts of `--trunc_len` 4096 tokens that advance by"
        " `--sliding_window` 1024; the model itself or another one (`--evaluator`) finds the key"
        " tokens; arXiv 2410.23771"
    )
    needs: tuple[str, ...] = ()
    figure: str = "longppl"
    title: str = "LongPPL"

    def prepare(self, opened: OpenedModel, settings: EvalSettings) -> Prepared:
        evaluator = _evaluator(opened, settings)
        needed = settings.trunc_len + settings.sliding_window + 1
        if min(settings.lengths) < needed:
            raise UserError(
                f"longppl does not fit {min(settings.lengths)} tokens: with --trunc_len"
                f" {settings.trunc_len} and --sliding_window {settings.sliding_window} it needs"
                f" {needed}"
            )
        documents = {
            length: heldout_documents(opened, length, settings.samples, self.name)
            for length in settings.lengths
        }
        return Prepared(documents, evaluator)

    def run(
        self, opened: OpenedModel, length: int, settings: EvalSettings, prepared: Prepared
    ) -> Record:
        """Returns `longppl` (None without key tokens), `ppl`, `key_tokens`, `tokens`, `documents`."""
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
        figures = result._asdict()
        if not result.key_tokens and not math.isnan(result.ppl):
            figures["longppl"] = None
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

"""Retrieval scores of attention heads by two definitions, and the entropy of their attention."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from hybridlm.models.mixers.rows import take
from hybridlm.models.params import Model, Params
from hybridlm.probes.layers import View, head_counts, mixer_names, over_layers
from hybridlm.probes.probe import LiveSubject, Probe, Subject
from hybridlm.probes.prompts import Prompts
from hybridlm.probes.settings import TOP_K
from hybridlm.probes.table import Head, Table

LAST_QUERIES = 4  # the paper averages the entropy of the last 4 queries


@dataclasses.dataclass(frozen=True)
class RetrievalHead:
    """A head's two retrieval scores, each in [0, 1].

    Attributes:
      mass: attention from the end of the question to the needle.
      copy: share of the answer's tokens that the head copies.
      samples: number of prompts in the means.
    """

    layer: int
    mixer: str
    head: int
    mass: float
    copy: float
    samples: int


def retrieval_heads(
    model: Model,
    params: Params,
    prompts: Prompts,
    *,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> Table[RetrievalHead]:
    """Scores every attention head.

    `mass` (arXiv 2606.15378, its code): the attention probability from the last token of the
    question, which predicts the answer's first token, to the needle's tokens, summed over these
    tokens and averaged over prompts. (The authors' prompts end a token later, so they take the last
    but one.)

    `copy` (arXiv 2404.15574, section 2): the head copies a token of the answer if the query that
    predicts this token attends most to a token in the needle and both tokens are the same. The
    score is the share of the answer's tokens that are copied, averaged over prompts. The paper
    generates the answer; here it is given (teacher forcing), so that models that cannot answer yet
    can be measured too. Sinks and slots are not tokens and are never the most attended token.
    """
    found = over_layers(
        model, params, prompts, _scores, layers=layers_with_heads(model), batch=batch, dtype=dtype
    )
    return _retrieval_table(model, prompts, found)


def top_heads(table: Table[RetrievalHead], k: int = TOP_K, by: str = "mass") -> tuple[Head, ...]:
    """The k heads with the largest score: "mass" (as in arXiv 2606.15378) or "copy"."""
    best = sorted(table, key=lambda e: (-getattr(e, by), e.layer, e.head))
    return tuple(Head(e.layer, e.head) for e in best[:k])


@dataclasses.dataclass(frozen=True)
class HeadEntropy:
    """A head's attention entropy.

    Attributes:
      entropy: normalised to [0, 1]: 0 if one key has all attention, 1 if attention is uniform.
      nats: the entropy in nats, not normalised.
      keys: mean number of keys that a query sees.
    """

    layer: int
    mixer: str
    head: int
    entropy: float
    nats: float
    keys: float


def attention_entropy(
    model: Model,
    params: Params,
    prompts: Prompts,
    heads: Collection[Head] | None = None,
    *,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> Table[HeadEntropy]:
    """H = -sum p ln p over the keys a query sees, and H / ln(number of them).

    Averaged over prompts and the last 4 queries of the question (arXiv 2606.15378, its code). The
    entropy of a query with one key is 0. p is renormalised over tokens, without the probability of
    sinks and slots. Queries that give no probability to any token are left out.

    Args:
      heads: the heads to measure; None for all. The paper uses the final checkpoint's `top_heads`.
    """
    chosen = None if heads is None else set(heads)
    layers = layers_with_heads(model)
    if chosen is not None:
        layers = sorted(set(layers) & {head.layer for head in chosen})
    found = over_layers(model, params, prompts, _entropies, layers=layers, batch=batch, dtype=dtype)
    return _entropy_table(model, found, chosen)


def heads_at_once(
    model: Model,
    params: Params,
    prompts: Prompts,
    *,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[Table[RetrievalHead], Table[HeadEntropy]]:
    """`retrieval_heads` and `attention_entropy` of every head, from one forward pass."""
    layers = layers_with_heads(model)
    found = over_layers(model, params, prompts, _both, layers=layers, batch=batch, dtype=dtype)
    scores, entropies = ({layer: pair[i] for layer, pair in found.items()} for i in (0, 1))
    return _retrieval_table(model, prompts, scores), _entropy_table(model, entropies, None)


def layers_with_heads(model: Model) -> list[int]:
    """The layers with attention heads."""
    return [layer for layer, count in enumerate(head_counts(model)) if count]


def _retrieval_table(
    model: Model, prompts: Prompts, found: dict[int, tuple[np.ndarray, np.ndarray]]
) -> Table[RetrievalHead]:
    """The table of (mass_NH, copy_NH) by layer."""
    asked = np.any(prompts.rows_NQ >= 0, axis=1)
    names = mixer_names(model)
    entries = [
        RetrievalHead(
            layer,
            names[layer],
            h,
            float(mass[asked, h].mean()),
            float(copy[asked, h].mean()),
            int(asked.sum()),
        )
        for layer, (mass, copy) in found.items()
        for h in range(mass.shape[1])
    ]
    return Table(
        "retrieval_heads",
        "attention from the question's end to the needle (mass); answer tokens whose source gets"
        " the most attention (copy)",
        "arXiv 2606.15378; arXiv 2404.15574",
        tuple(entries),
    )


def _entropy_table(
    model: Model, found: dict[int, tuple[np.ndarray, ...]], chosen: Collection[Head] | None
) -> Table[HeadEntropy]:
    """The table of (nats_NHQ, keys_NHQ, seen_NHQ) by layer."""
    names, entries = mixer_names(model), []
    for layer, (nats_NHQ, keys_NHQ, seen_NHQ) in found.items():
        normalised_NHQ = nats_NHQ / np.log(np.maximum(keys_NHQ, 2))
        for h in range(nats_NHQ.shape[1]):
            seen = seen_NHQ[:, h]
            if (chosen is None or Head(layer, h) in chosen) and seen.any():
                means = (float(x[:, h][seen].mean()) for x in (normalised_NHQ, nats_NHQ, keys_NHQ))
                entries.append(HeadEntropy(layer, names[layer], h, *means))
    return Table(
        "entropy",
        "entropy of attention over the keys seen, divided by ln of their number",
        "arXiv 2606.15378",
        tuple(entries),
    )


def _scores(view: View):
    """(mass_BH, copy_BH) of a layer."""
    batch = view.batch
    attention = view.block.mixer.attention_rows(view.mixer_input_BTD, view.context, batch.rows_BQ)
    probs_BHQT = attention.probs_BHQT
    mass_BH = jnp.sum(jnp.where(batch.needle_BT[:, None], probs_BHQT[:, :, 0], 0), axis=-1)
    first_BHQ = jnp.argmax(probs_BHQT, axis=-1)
    source_BHQ = take(batch.tokens_BT, first_BHQ.reshape(len(first_BHQ), -1))
    needle_BHQ = take(batch.needle_BT, first_BHQ.reshape(len(first_BHQ), -1))
    asked_BQ = batch.rows_BQ >= 0
    target_BQ = take(batch.tokens_BT, jnp.where(asked_BQ, batch.rows_BQ + 1, 0))
    copied_BHQ = source_BHQ.reshape(first_BHQ.shape) == target_BQ[:, None]
    copied_BHQ &= needle_BHQ.reshape(first_BHQ.shape) & asked_BQ[:, None]
    copied_BHQ &= jnp.any(probs_BHQT > 0, axis=-1)
    count_B1 = jnp.maximum(jnp.sum(asked_BQ, axis=1), 1)[:, None]
    return mass_BH, jnp.sum(copied_BHQ, axis=-1) / count_B1


def _entropies(view: View):
    """(nats_BHQ, keys_BHQ, seen_BHQ) of the last queries of the question."""
    batch = view.batch
    end_B1 = batch.rows_BQ[:, :1]
    rows_BQ = end_B1 - jnp.arange(LAST_QUERIES)[None]
    # Only queries in the question's own document, and only where there is a question.
    ids_BT, positions_BT = batch.segment_ids_BT, batch.positions_BT
    same_BQ = jnp.arange(LAST_QUERIES)[None] <= take(positions_BT, end_B1)
    rows_BQ = jnp.where((end_B1 >= 0) & same_BQ & (take(ids_BT, end_B1) != 0), rows_BQ, -1)
    probs_BHQT, visible_BHQT = view.block.mixer.attention_rows(
        view.mixer_input_BTD, view.context, rows_BQ
    )
    total_BHQ1 = jnp.sum(probs_BHQT, axis=-1, keepdims=True)
    p_BHQT = probs_BHQT / jnp.where(total_BHQ1 > 0, total_BHQ1, 1)
    terms_BHQT = jnp.where(p_BHQT > 0, p_BHQT * jnp.log(jnp.where(p_BHQT > 0, p_BHQT, 1)), 0)
    keys_BHQ = jnp.sum(visible_BHQT, axis=-1)
    seen_BHQ = (keys_BHQ > 0) & (total_BHQ1[..., 0] != 0)  # NaN is seen: it is a finding
    return -jnp.sum(terms_BHQT, axis=-1), keys_BHQ, seen_BHQ


def _both(view: View):
    return _scores(view), _entropies(view)


def _run_retrieval_heads(
    subject: LiveSubject, step: int | None, params: Params
) -> Iterator[Table[Any]]:
    yield retrieval_heads(subject.model, params, subject.prompts, **subject.options)


def _run_entropy(subject: Subject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    yield attention_entropy(
        subject.model, params, subject.prompts, subject.heads, **subject.options
    )


def _run_heads(subject: LiveSubject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    yield from heads_at_once(subject.model, params, subject.prompts, **subject.options)


def _heads_log_parts(tables: Sequence[Table[Any]]) -> list[str]:
    retrieval, entropies = tables
    parts = []
    for by in ("mass", "copy") if len(retrieval) else ():
        best = max(retrieval, key=lambda e, by=by: getattr(e, by))
        parts.append(f"best {by} {getattr(best, by):.3f} (head {best.layer}.{best.head})")
    if len(entropies):
        parts.append(f"least entropy {min(e.entropy for e in entropies):.3f}")
    return parts


RETRIEVAL_HEADS = Probe(
    "retrieval_heads",
    "two retrieval scores of every head",
    "`mass`: attention probability from the question's last token to the needle, summed over the"
    " needle's tokens (arXiv 2606.15378). `copy`: share of the answer's tokens whose predicting query"
    " attends most to the same token in the needle (arXiv 2404.15574, section 2); the answer is given"
    " instead of generated",
    _run_retrieval_heads,
)
ENTROPY = Probe(
    "entropy",
    "attention entropy of the `--top_k` retrieval heads",
    "−Σ p ln p over the keys a query sees, divided by ln of their number; mean over the question's"
    " last 4 queries (arXiv 2606.15378). The heads are those of the newest checkpoint, by `--by`"
    " `mass` or `copy`",
    _run_entropy,
)
HEADS = Probe(
    "heads",
    "retrieval scores and entropy of every head, from one forward pass",
    "as `retrieval_heads`, and as `entropy` of all heads; entries are recorded under these names",
    _run_heads,
    live=_heads_log_parts,
)

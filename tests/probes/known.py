"""A model with known heads: one copies, one attends uniformly, and the rest adds nothing."""

import jax
import numpy as np

from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.probes import Prompt, Prompts

VOCAB = 16
MIXERS = {
    "two": dict(kind="attention", heads=1, head_dim=VOCAB, window=2, rope=None, scale=1.0),
    "full": dict(kind="attention", heads=2, head_dim=VOCAB, rope=None, scale=1.0),
}


def induction():
    """(Model, parameters): two layers in the scanned unit, "two" and "full".

    The residual stream is (token, what "two" adds), both one-hot sums. "two" adds the mean of the
    last two tokens, from which head 1.0 makes keys of the token before: it attends to what followed
    the query's token, and adds that token. Head 1.1 has no queries, so it is uniform, and no
    output.
    """
    config = ModelConfig(
        width=2 * VOCAB,
        depth=2,
        pattern="two full",
        mixers=MIXERS,
        mlp=dict(kind="swiglu", hidden=2),
        vocab_size=VOCAB,
    )
    model = Model.of(config)
    params = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), model.abstract)
    one, none = np.eye(VOCAB), np.zeros((VOCAB, VOCAB))
    params["embedding"] = np.hstack([one, none])
    params["final_norm"]["scale"] += 1
    two, full = params["unit"]["0_two"], params["unit"]["1_full"]
    for block in (two, full):
        block["mixer_norm"]["scale"] += 1
        block["mlp_norm"]["scale"] += 1
    two["mixer"]["v"]["kernel"][0] = np.vstack([one, none])
    two["mixer"]["out"]["kernel"][0] = np.hstack([none, one])  # the norm multiplied the values too
    full["mixer"]["q"]["kernel"][0] = np.hstack([np.vstack([one, none]), np.vstack([none, none])])
    norm = np.sqrt(2 * VOCAB)  # of the first layer: x / rms(x) of a one-hot vector
    keys = 10 * np.vstack([-one, 2 * one / norm])
    full["mixer"]["k"]["kernel"][0] = np.hstack([keys, np.vstack([none, none])])
    values = np.vstack([one, none])
    full["mixer"]["v"]["kernel"][0] = np.hstack([values, values])
    full["mixer"]["out"]["kernel"][0] = np.vstack(
        [np.hstack([5 * one, none]), np.hstack([none, none])]
    )
    return model, jax.tree.map(lambda p: np.asarray(p, np.float32), params)


def prompt(rng, needle=3, first=None):
    """Different tokens; the question's last token also occurs right before the needle.

    Args:
      first: the needle's first token; None draws it.
    """
    tokens = rng.permutation(VOCAB)
    if first is not None:
        here = int(np.flatnonzero(tokens == first)[0])
        tokens[[here, 4]] = tokens[[4, here]]
    start = 4
    answer = tokens[start : start + needle]
    row = np.concatenate([tokens, tokens[start - 1 : start], answer]).astype(np.int32)
    return Prompt(row, [(start, start + needle)], (len(row) - needle, len(row)))


def prompts(count, seed=0, needle=3, length=None):
    rng = np.random.default_rng(seed)
    return Prompts.of([prompt(rng, needle) for _ in range(count)], length)


def packed(made, before):
    """The same prompts, each after a document that repeats its first `before` tokens."""
    n = len(made)
    zeros, ones = np.zeros((n, before), np.int32), np.ones((n, before), np.int32)
    return Prompts(
        np.hstack([made.tokens_NT[:, :before], made.tokens_NT]),
        np.hstack([ones, 2 * made.segment_ids_NT]),
        np.hstack([np.arange(before, dtype=np.int32)[None] + zeros, made.positions_NT]),
        np.where(made.rows_NQ >= 0, made.rows_NQ + before, -1),
        np.hstack([zeros.astype(bool), made.needle_NT]),
    )

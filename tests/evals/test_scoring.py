"""Scoring equals direct computation on a tiny random model: decoding, likelihoods, metrics."""

import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
import small

from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.errors import UserError
from hybridlm.evals import scoring
from hybridlm.evals.sample import Sample
from hybridlm.models.mixers import SequenceContext


@pytest.fixture(scope="module")
def tiny():
    """A hybrid of window, full attention and recurrence over the byte vocabulary, padded to 264."""
    return small.make(small.model_config("swa full rec", vocab_size=264))


@pytest.fixture(scope="module")
def logits_of(tiny):
    """Logits (tokens, V) of one document of at most 48 tokens; one program for all lengths."""
    model, params = tiny
    positions = np.arange(48, dtype=np.int32)[None]
    forward = jax.jit(lambda t, ids: model.bind(params)(t, SequenceContext(ids, positions))[0])

    def run(tokens):
        row, ids = np.zeros((2, 1, 48), np.int32)
        row[0, : len(tokens)], ids[0, : len(tokens)] = tokens, 1
        return np.array(forward(row, ids))[: len(tokens)]

    return run


def sample(tokens, count, length):
    nothing = ("", "", ("x",), (), np.asarray(tokens, np.int32), (), (), count)
    return Sample("t", length, 0, 0, *nothing)


def test_batched_decoding_equals_the_argmax_for_each_prompt_alone(tiny, logits_of):
    """With prompts of different lengths, padded on the left, only allowed tokens are generated."""
    model, params = tiny
    tokenizer = ByteTokenizer()
    rng = np.random.default_rng(0)
    prompts = [np.concatenate([[256], rng.integers(97, 123, n)]) for n in (3, 17, 30, 1, 9)]
    made = scoring.complete(model, params, tokenizer, [sample(p, 12, 48) for p in prompts], batch=3)
    for prompt, text in zip(prompts, made):
        tokens, chosen = list(prompt), []
        for _ in range(12):
            logits = logits_of(tokens)[-1]
            logits[258:] = logits[256] = -np.inf
            if logits.argmax() == 257:
                break
            chosen.append(int(logits.argmax()))
            tokens.append(chosen[-1])
        assert text == tokenizer.decode(chosen)


def test_likelihoods_are_sums_over_the_forward_pass(tiny, logits_of):
    model, params = tiny
    rng = np.random.default_rng(1)
    pairs = [
        (rng.integers(0, 256, a), rng.integers(0, 256, b)) for a, b in ((3, 4), (9, 1), (1, 7))
    ]
    found = scoring.continuation_likelihoods(model, params, pairs, batch=2)
    for (prompt, continuation), likelihood in zip(pairs, found):
        tokens = np.concatenate([prompt, continuation])
        log_p = np.asarray(jax.nn.log_softmax(logits_of(tokens)))
        places = np.arange(len(prompt) - 1, len(tokens) - 1)
        assert likelihood.log_prob == pytest.approx(
            log_p[places, continuation].sum(), rel=1e-5, abs=1e-4
        )
        assert likelihood.greedy == bool((log_p[places].argmax(-1) == continuation).all())
    with pytest.raises(ValueError, match="is empty"):
        scoring.continuation_likelihoods(model, params, [(np.array([], int), np.array([1]))])


def test_a_greedy_continuation_is_reported_as_greedy(tiny, logits_of):
    model, params = tiny
    prompt = np.array([256, 97, 98])
    tokens = list(prompt)
    for _ in range(3):
        tokens.append(int(logits_of(tokens)[-1].argmax()))
    (found,) = scoring.continuation_likelihoods(model, params, [(prompt, np.array(tokens[3:]))])
    assert found.greedy


class OneSpace(ByteTokenizer):
    """Drops spaces at the ends and repeated ones, as SentencePiece does with extra spaces."""

    def encode(self, text):
        return super().encode(" ".join(text.split()))


@pytest.mark.parametrize(
    "tokenizer, context, continuation, prompt, answer",
    [
        (ByteTokenizer(), "One two", " three", "One two", " three"),
        (ByteTokenizer(), "One ", "two", "One", " two"),
        (ByteTokenizer(), "", "x", "", "x"),
        (ByteTokenizer(), "q" * 90, "abc", "q" * 12, "abc"),
        (OneSpace(), "One  ", "two", "One", " two"),
    ],
)
def test_a_continuation_has_the_tokens_that_it_adds(
    tokenizer, context, continuation, prompt, answer
):
    found = scoring.continuation_pair(tokenizer, context, continuation, 16)
    assert found[0].tolist() == [tokenizer.bos_id, *prompt.encode()]
    assert found[1].tolist() == [*answer.encode()]


@pytest.mark.parametrize(
    "tokenizer, context, continuation, words",
    [
        (ByteTokenizer(), "", "", "is empty"),
        (ByteTokenizer(), "Hello ", "", "is empty"),
        (OneSpace(), "Hello", " ", "the continuation ' ' of 'Hello' adds no token to it"),
        (OneSpace(), "Hello ", "  ", "adds no token"),
        (OneSpace(), "", " ", "adds no token"),
        (ByteTokenizer(), "a", "b" * 16, "has 16 tokens: it needs 1 to 15"),
    ],
)
def test_a_continuation_without_a_token_of_its_own_is_refused(
    tokenizer, context, continuation, words
):
    """The last token of the context would be scored in its place."""
    with pytest.raises(UserError, match=words):
        scoring.continuation_pair(tokenizer, context, continuation, 16)


@pytest.mark.parametrize(
    "text, references, every, one",
    [
        ("It is 1234567.", ("1234567",), 1.0, 1.0),
        ("ALPHA, beta", ("alpha", "Beta", "gamma", "delta"), 0.5, 1.0),
        ("none", ("a1", "b2"), 0.0, 0.0),
    ],
)
def test_string_matches(text, references, every, one):
    assert scoring.string_match_all(text, references) == every
    assert scoring.string_match_any(text, references) == one


def test_the_table_has_a_row_per_task_and_a_column_per_length():
    text = scoring.accuracy_table("task", {"vt": {1024: 0.25, 256: 1.0}, "needle": {256: 0.0}})
    assert text.splitlines() == [
        "task        256    1,024",
        "vt        100.0     25.0",
        "needle      0.0         ",
    ]


def test_a_model_that_is_not_finite_completes_nothing(tiny):
    """Neither is token 0, which argmax makes of NaN, an answer."""
    model, params = tiny
    broken = {**params, "embedding": np.full_like(params["embedding"], np.nan)}
    prompts = [np.concatenate([[256], np.arange(97, 97 + n)]) for n in (3, 17, 30)]
    made = scoring.complete(
        model, broken, ByteTokenizer(), [sample(p, 12, 48) for p in prompts], batch=3
    )
    assert made == [None] * 3
    (found,) = scoring.continuation_likelihoods(model, broken, [(prompts[0], prompts[1])])
    assert np.isnan(found.log_prob)

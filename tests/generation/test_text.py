"""Generation: cached decoding is the forward pass, and each way to sample draws what it says."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.errors import RunError, UserError
from hybridlm.generation.settings import GenerateSettings
from hybridlm.generation.text import (
    Sampling,
    generate_text,
    generate_tokens,
    sample_token,
)
from hybridlm.settings.text import read_options

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "models"))
import small


def test_greedy_decoding_is_the_argmax_of_the_forward_pass():
    """90 tokens from caches: each is the likeliest after all tokens before it, recomputed whole."""
    model, params = small.make(small.model_config("swa full rec"))
    prompt, count = np.array([3, 1, 4, 1, 5]), 90
    pieces = list(generate_tokens(model, params, prompt, count, Sampling(temperature=0)))
    made = np.concatenate(pieces, axis=1)[0]
    assert len(made) == count
    tokens = np.concatenate([prompt, made])[None]
    logits = jax.jit(lambda p: model.bind(p)(tokens, small.context(np.ones_like(tokens))))(params)
    chosen = np.take_along_axis(np.asarray(logits[0, 4:-1]), made[:, None], axis=1)[:, 0]
    best = np.asarray(logits[0, 4:-1].max(axis=-1))
    np.testing.assert_allclose(chosen, best, atol=1e-4)


def test_the_same_seed_gives_the_same_text_and_others_do_not():
    model, params = small.make(small.model_config("rec"))

    def text(seed, batch=1):
        prompt = np.array([1, 2])
        made = generate_tokens(model, params, prompt, 20, Sampling(2.0), seed=seed, batch=batch)
        return np.concatenate(list(made), axis=1)

    np.testing.assert_array_equal(text(0), text(0))
    assert np.any(text(0) != text(1))
    assert len({row.tobytes() for row in text(0, batch=4)}) == 4


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), top_k=st.integers(1, 9), top_p=st.floats(0.05, 1.0))
def test_draws_stay_within_top_k_and_top_p(seed, top_k, top_p):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(8) * 2
    p = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-p)
    within_k = set(order[:top_k].tolist())
    before = np.concatenate([[0], np.cumsum(p[order])[:-1]])
    within_p = set(order[before < top_p + 1e-6].tolist())
    many = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (64, 8))
    key = jax.random.key(seed)
    assert set(sample_token(many, key, Sampling(1.0, top_k)).tolist()) <= within_k
    assert set(sample_token(many, key, Sampling(1.0, None, top_p)).tolist()) <= within_p


@pytest.mark.parametrize(
    "sampling", [Sampling(1e-40), Sampling(1e-300), Sampling(1.0, None, 1e-40)]
)
def test_settings_next_to_nothing_are_greedy(sampling):
    """What float32 rounds to 0 divides nothing, and leaves the likeliest token."""
    logits = jnp.asarray([[0.1, 3.0, 2.9, -jnp.inf], [5.0, -1.0, 4.9, -jnp.inf]])
    assert sample_token(logits, jax.random.key(0), sampling).tolist() == [1, 0]


def test_a_temperature_beyond_float32_draws_what_is_allowed():
    logits = jnp.broadcast_to(jnp.asarray([0.1, 3.0, 2.9, -jnp.inf]), (200, 4))
    draws = sample_token(logits, jax.random.key(0), Sampling(1e300)).tolist()
    assert set(draws) == {0, 1, 2}


def test_temperature_one_draws_the_models_distribution():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32)), (20_000, 4))
    draws = np.asarray(sample_token(logits, jax.random.key(0), Sampling()))
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 20_000, p, atol=0.015)
    sharper = np.asarray(sample_token(logits, jax.random.key(0), Sampling(0.5)))
    np.testing.assert_allclose(
        np.bincount(sharper, minlength=4) / 20_000, p**2 / (p**2).sum(), atol=0.015
    )


def test_forbidden_tokens_are_never_drawn():
    model, params = small.make(small.model_config("rec"))
    allowed = np.arange(40) % 2 == 0
    made = generate_tokens(
        model, params, np.array([1]), 40, Sampling(5.0), batch=3, allowed_V=allowed
    )
    assert not np.any(np.concatenate(list(made), axis=1) % 2)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"temperature": -1.0}, "--temperature must be"),
        ({"temperature": float("nan")}, "--temperature must be"),
        ({"temperature": float("inf")}, "--temperature must be"),
        ({"top_k": 0}, "--top_k must be"),
        ({"top_p": 1.5}, "--top_p must"),
        ({"tokens": 0}, "--tokens must be at least 1"),
        ({"tokens": 2_000_000_000}, "at most 1,000,000, not 2000000000"),
        ({"prompt": "a\udcff"}, "--prompt is not valid UTF-8"),
        ({"seed": -1}, "--seed must"),
        ({"seed": 2**40}, "--seed must"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, sentence):
    with pytest.raises(UserError) as error:
        read_options(GenerateSettings, given)
    assert sentence in str(error.value)


class Words:
    """A tokenizer as SentencePiece's are: a word carries its space, and the first one's is dropped."""

    vocab_size, bos_id, eos_id = 40, 0, 1

    def encode(self, text):
        return np.array([int(word) for word in text.split()], np.int32)

    def decode(self, ids):
        return "".join(f" {i}" for i in ids if i > 1)[1:]


def test_the_continuation_keeps_its_first_space():
    model, params = small.make(small.model_config("rec"))
    text = "".join(generate_text(model, params, Words(), "5 7", 6, Sampling(temperature=0)))
    assert text.startswith(" ") and len(text.split()) <= 6
    assert Words().encode("5 7" + text)[1] == 7


def test_a_model_that_is_not_finite_writes_one_sentence_and_no_text():
    model, params = small.make(small.model_config("rec", vocab_size=264))
    broken = {**params, "embedding": np.full_like(params["embedding"], np.nan)}
    with pytest.raises(RunError, match="logits are not finite"):
        list(generate_text(model, broken, ByteTokenizer(), "a", 3))

"""The sliced cross entropy equals the direct one and never stores all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.models.loss import (
    LossSettings,
    slice_length,
    summed_cross_entropy,
    token_nll,
)


def direct(hidden, head, targets, weights, settings):
    logits = settings.logit_scale * (hidden @ head)
    if settings.logit_soft_cap:
        logits = settings.logit_soft_cap * jnp.tanh(logits / settings.logit_soft_cap)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    nll = normalizer - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return jnp.sum((nll + settings.z_loss * normalizer**2) * weights), nll


@pytest.mark.parametrize(
    "batch, time, vocab, cap, z_loss, scale",
    [
        (1, 1, 2, None, 0.0, 1.0),
        (2, 33, 50, 5.0, 0.01, 0.3),
        (3, 6, 7, None, 0.01, 1.0),
        (2, 6, 7, None, 0.0, 2.5),
    ],
)
def test_sliced_loss_equals_the_direct_form(batch, time, vocab, cap, z_loss, scale):
    rng = np.random.default_rng(batch * time)
    with jax.enable_x64(True):
        options = LossSettings(cap, z_loss, scale)
        hidden = jnp.asarray(rng.standard_normal((batch, time, 7)))
        head = jnp.asarray(rng.standard_normal((7, vocab)))
        targets = jnp.asarray(rng.integers(0, vocab, (batch, time)), jnp.int32)
        weights = jnp.asarray(rng.integers(0, 2, (batch, time)) * rng.random((batch, time)))
        (total, nll), grads = jax.value_and_grad(
            lambda h, w: summed_cross_entropy(h, w, targets, weights, options),
            argnums=(0, 1),
            has_aux=True,
        )(hidden, head)
        (expected, nll_BT), expected_grads = jax.value_and_grad(
            lambda h, w: direct(h, w, targets, weights, options), argnums=(0, 1), has_aux=True
        )(hidden, head)
        np.testing.assert_allclose(total, expected, rtol=1e-10)
        np.testing.assert_allclose(nll, jnp.sum(nll_BT * weights), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(
            token_nll(hidden, head, targets, options), nll_BT, rtol=1e-9, atol=1e-10
        )
        for a, b in zip(grads, expected_grads):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
        # Without differentiation another code path runs; it gives the same values.
        plain = summed_cross_entropy(hidden, head, targets, weights, options)
        np.testing.assert_allclose(plain, (total, nll), rtol=1e-10)


@pytest.mark.parametrize("differentiate", [False, True])
def test_full_logits_are_never_stored(differentiate):
    """The compiled program's temporary memory is below the size of tokens x vocabulary."""
    batch, time, width, vocab = 4, 512, 8, 4096

    def loss(hidden, head, targets, weights):
        return summed_cross_entropy(hidden, head, targets, weights)[0]

    function = jax.grad(loss, argnums=(0, 1)) if differentiate else loss
    shapes = [((batch, time, width), jnp.float32), ((width, vocab), jnp.float32)]
    shapes += [((batch, time), jnp.int32), ((batch, time), jnp.float32)]
    arguments = [jax.ShapeDtypeStruct(*s) for s in shapes]
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    full = 4 * batch * time * vocab
    assert memory.temp_size_in_bytes < full, f"{memory.temp_size_in_bytes} of {full} bytes"


def test_slices_fit_and_are_the_longest():
    """No length that divides the time is longer, of those that a slice's bounds allow."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        batch, time, width = (int(n) for n in rng.integers(1, (16, 5000, 4096)))
        vocab = int(rng.integers(2, 200_000))
        length = slice_length(batch, time, width, vocab)

        def fits(n, batch=batch, time=time, width=width, vocab=vocab):
            head = 2 * width * vocab
            most, slices = (head, 2) if head >= 2**22 else (2**22, 4)
            return n * batch * vocab <= most and n <= -(-time // slices)

        longest = max((n for n in range(1, time + 1) if fits(n)), default=1)
        divisor = max(n for n in range(1, longest + 1) if time % n == 0)
        assert length == (divisor if 2 * divisor > longest else longest), (
            batch,
            time,
            width,
            vocab,
        )


@pytest.mark.parametrize(
    "batch, time, width, vocab, length",
    [
        (4, 4096, 2048, 32_000, 1024),  # the 1B step of a chip: 2^27 logits
        (2, 8192, 4096, 32_000, 4096),  # the 7B step of a chip
        (4, 4097, 2048, 32_000, 1024),  # prime: the last slice is padded
        (4, 3000, 2048, 32_000, 1000),
        (8, 256, 128, 258, 64),  # the demo: a quarter
        (64, 8, 2048, 262_144, 4),
        (5000, 8, 2048, 262_144, 1),
    ],
)
def test_known_slices(batch, time, width, vocab, length):
    assert slice_length(batch, time, width, vocab) == length


def test_a_sum_with_zero_weights_is_zero():
    hidden, head = jnp.ones((1, 3, 2)), jnp.ones((2, 5))
    zeros = jnp.zeros((1, 3))
    total, nll = summed_cross_entropy(hidden, head, zeros.astype(int), zeros)
    assert (float(total), float(nll)) == (0.0, 0.0)

"""Decays of chunks in TPU kernels against sums in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.tpu_decays import RESET, HeadDecays, HeadSums


def in_float64(g_C):
    """(between_CC, in_C, out_C, keep) of log-decays."""
    g_C = np.maximum(g_C.astype(np.float64), -1e4)
    length = len(g_C)
    sums_CC = [[g_C[j + 1 : i + 1].sum() for j in range(length)] for i in range(length)]
    between_CC = np.tril(np.exp(sums_CC))
    into_C = np.exp(np.cumsum(g_C))
    return between_CC, into_C, between_CC[-1], into_C[-1]


@pytest.mark.parametrize("size", (1e-4, 0.03, 1.0, 20.0))
@pytest.mark.parametrize("length", (16, 128))
def test_decays_are_as_exact_as_float32_allows(length, size):
    """Weak gates after strong ones, document boundaries and gates of almost minus infinity included."""
    draw = np.random.default_rng(0)
    g_RC = -size * draw.exponential(size=(3, length)).astype(np.float32)
    g_RC[0, length // 4] = -100.0
    g_RC[1, [0, length // 2, length // 2 + 1]] = RESET
    g_RC[2, 3] = -1e20
    sums = HeadSums.of(jnp.asarray(g_RC))
    for h in range(3):
        found = HeadDecays.of(sums, h)
        for x, want in zip(found, in_float64(g_RC[h]), strict=True):
            got = np.asarray(x, np.float64)
            np.testing.assert_allclose(got, np.reshape(want, got.shape), rtol=0, atol=2e-7)
        # Small decays are right relative to themselves, not only to 1.
        strong = in_float64(g_RC[h])[0]
        some = strong > 1e-30
        got = np.asarray(found.between_CC)[some]
        np.testing.assert_allclose(got, strong[some], rtol=1e-5)


def test_growth_does_not_cross_a_boundary():
    """Log-decays above 0, which the ops do not promise to take."""
    g_1C = np.ones((1, 128), np.float32)
    g_1C[0, 1] = RESET
    found = HeadDecays.of(HeadSums.of(jnp.asarray(g_1C)), 0)
    np.testing.assert_array_equal(np.asarray(found.between_CC)[1:, 0], 0)
    np.testing.assert_array_equal(np.asarray(found.in_C1)[1:], 0)
    np.testing.assert_allclose(np.asarray(found.between_CC)[40, 10], np.exp(30.0), rtol=1e-6)

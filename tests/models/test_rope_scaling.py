"""Scaled RoPE against the published definitions."""

import math

import numpy as np
import pytest

from hybridlm.models.positional import RopeConfig
from hybridlm.models.rope_scaling import (
    KeptRopeConfig,
    LinearRopeConfig,
    Llama3RopeConfig,
    YarnConfig,
)
from hybridlm.settings.reader import Invalid


@pytest.mark.parametrize("theta", [1e2, 1e4, 5e5])
@pytest.mark.parametrize("rotated", [8, 64, 128])
def test_llama3_divides_slow_rotations_and_keeps_fast_ones(theta, rotated):
    config = Llama3RopeConfig(factor=8.0, length=8192, low=1.0, high=4.0)
    found = config.frequency_factors(theta, rotated)
    for i, factor in enumerate(found):
        wavelength = 2 * math.pi * theta ** (2 * i / rotated)
        if wavelength < 8192 / 4:
            expected = 1.0
        elif wavelength > 8192:
            expected = 1 / 8
        else:
            smooth = (8192 / wavelength - 1) / 3
            expected = (1 - smooth) / 8 + smooth
        assert factor == pytest.approx(expected, rel=1e-12)


def test_llama3_without_a_ramp_is_a_step():
    """Llama 4 Scout has `low` 1 and `high` 1: below one rotation divided, from one on kept."""
    config = Llama3RopeConfig(factor=16.0, length=8192, low=1.0, high=1.0)
    turns = 8192 / (2 * math.pi) * 500_000.0 ** (-np.arange(64) / 64)
    expected = np.where(turns < 1, 1 / 16, 1.0)
    assert {*expected} == {1 / 16, 1.0}
    np.testing.assert_array_equal(config.frequency_factors(500_000.0, 128), expected)


def test_linear_divides_all():
    np.testing.assert_array_equal(LinearRopeConfig(4.0).frequency_factors(1e4, 8), [0.25] * 4)


def test_yarn_takes_an_own_magnitude_and_ends_between_dimensions():
    whole = YarnConfig(32.0, 4096)
    own = YarnConfig(32.0, 4096, attention=1.5, truncate=False)
    assert whole.magnitude == 0.1 * math.log(32) + 1 and own.magnitude == 1.5
    a, b = (x.frequency_factors(150_000.0, 64) for x in (whole, own))
    assert not np.array_equal(a, b)
    assert np.abs(a - b).max() < 0.2
    assert a[0] == b[0] == 1 and a[-1] == b[-1] == 1 / 32


@pytest.mark.parametrize("fraction, kept", [(0.25, 8), (0.8, 25), (1.0, 32), (0.0, 0)])
def test_kept_rope_has_the_fastest_frequencies_alone(fraction, kept):
    found = KeptRopeConfig(fraction, factor=2.0).frequency_factors(1e4, 64)
    np.testing.assert_array_equal(found, [0.5] * kept + [0.0] * (32 - kept))


def test_one_scaling_at_most():
    with pytest.raises(Invalid, match="goes without yarn"):
        RopeConfig(yarn=YarnConfig(2.0, 8), linear=LinearRopeConfig(2.0))

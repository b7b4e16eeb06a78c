"""Makes `subjects` importable under any pytest import mode, and keeps float64 local."""

import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture
def x64():
    """Enables float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def no_rank_promotion():
    """Raises on implicit broadcasts."""
    with jax.numpy_rank_promotion("raise"):
        yield

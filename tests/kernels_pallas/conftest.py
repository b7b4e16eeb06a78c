"""Makes `subjects` importable under any pytest import mode, and keeps float64 local."""

import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture
def x64():
    """float64 for one test; the float32 default is back afterwards."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def no_rank_promotion():
    """Ops spell every broadcast out."""
    with jax.numpy_rank_promotion("raise"):
        yield

"""Makes `small` importable, forbids implicit rank promotion, and defines a fixture."""

import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Float64 arrays keep their dtype."""
    with jax.enable_x64(True):
        yield

"""Makes `small` and `known` importable, and forbids implicit rank promotion."""

import pathlib
import sys

import jax
import pytest

from kernels_pallas import dispatch

HERE = pathlib.Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "models")]


@pytest.fixture(autouse=True)
def reference_forms():
    """Uses the reference forms, which compile fastest; other tests compare all forms."""
    with dispatch.auto_means("reference"):
        yield


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield

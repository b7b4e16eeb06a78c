"""Makes `small` and `known` importable, and spells every broadcast out."""

import pathlib
import sys

import jax
import pytest

from kernels_pallas import dispatch

HERE = pathlib.Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "models")]


@pytest.fixture(autouse=True)
def reference_forms():
    """The forms of the ops that compile fastest; that all forms agree is tested elsewhere."""
    with dispatch.auto_means("reference"):
        yield


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield

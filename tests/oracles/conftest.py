"""Where the fixtures lie; every broadcast is spelled out."""

import pathlib
import sys

import jax
import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.fixture
def fixtures(request) -> pathlib.Path:
    """The folder of fixtures: the committed one, or what `--oracles` names."""
    return request.config.getoption("--oracles") or HERE / "fixtures"


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield

"""Runs reproduce the numbers of `golden.json`, bit for bit on the processor that wrote it."""

import json
import tarfile

import numpy as np
import pytest

from hybridlm import cli
from tests.golden import record
from tests.golden.recipe import CASES

GOLDEN = json.loads(record.GOLDEN.read_text())
LONG = (
    "delta",
    "ssm",
    "selective",
    "odd",
    "options",
    "mesh",
)  # the resumed checkpoint is of "delta"
SAME_PROCESSOR = record.processor() == GOLDEN["processor"]


def tolerance(case: str, figure: str, step: int) -> float:
    """Relative, on other processors.

    The gradient of "delta" is ill-conditioned: norms follow mixers whose outputs are small, and Muon
    makes directions that are mere rounding as long as all others. Another optimisation level of the
    compiler changes its norm by 1e-6 at step 1 and by 4e-3 at step 6; with norm_eps=1e-2, which the
    stored run does not have, by less than 1e-4.
    """
    return 1e-2 if (case, figure) == ("delta", "grad_norm") and step >= 3 else 1e-4


def check(case: str, found: dict, golden: dict) -> None:
    assert found["parameters"] == golden["parameters"]
    assert contains(found["config"], golden["config"])
    assert [f["step"] for f in found["figures"]] == [f["step"] for f in golden["figures"]]
    if SAME_PROCESSOR:
        assert found["figures"] == golden["figures"]
        assert found["state_sha256"] == golden["state_sha256"]
    for now, before in zip(found["figures"], golden["figures"]):
        for name, value in before.items():
            if name != "kind":
                rtol = tolerance(case, name, before["step"])
                np.testing.assert_allclose(now[name], value, rtol=rtol, err_msg=name)


def contains(settings, older) -> bool:
    """Whether `settings` has every key of `older` with its value; it may have newer keys."""
    if not isinstance(older, dict):
        return settings == older
    return all(key in settings and contains(settings[key], older[key]) for key in older)


def train(case, workdir, cache):
    """Trains in this process with the recorded runs' compiler flags; "mesh" in a new process."""
    if case == "mesh":
        record.train(case, workdir, cache)
    else:
        assert cli.main(record.words(case, workdir, cache)) == 0


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.mark.xdist_group("golden")
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c in LONG)) for c in CASES]
)
def test_a_run_reproduces_the_recorded_numbers(case, tokens, tmp_path, in_root):
    train(case, tmp_path / "run", tokens)
    check(case, record.result(tmp_path / "run"), GOLDEN["cases"][case])


@pytest.mark.xdist_group("golden")
def test_a_resumed_recorded_checkpoint_ends_with_the_same_bits(tokens, tmp_path, in_root):
    """The run resumes only if the recorded `config.json` matches the config."""
    with tarfile.open(record.ARCHIVE) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    train(record.RESUMED, tmp_path / "run", tokens)
    check(record.RESUMED, record.result(tmp_path / "run"), GOLDEN["resumed"])

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


def check(found: dict, golden: dict) -> None:
    assert found["parameters"] == golden["parameters"]
    assert contains(found["config"], golden["config"])
    assert [f["step"] for f in found["figures"]] == [f["step"] for f in golden["figures"]]
    if SAME_PROCESSOR:
        assert found["figures"] == golden["figures"]
        assert found["state_sha256"] == golden["state_sha256"]
    for now, before in zip(found["figures"], golden["figures"]):
        for name, value in before.items():
            if name != "kind":
                np.testing.assert_allclose(now[name], value, rtol=1e-4, err_msg=name)


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
    check(record.result(tmp_path / "run"), GOLDEN["cases"][case])


@pytest.mark.xdist_group("golden")
def test_a_resumed_recorded_checkpoint_ends_with_the_same_bits(tokens, tmp_path, in_root):
    """The run resumes only if the recorded `config.json` matches the config."""
    with tarfile.open(record.ARCHIVE) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    train(record.RESUMED, tmp_path / "run", tokens)
    check(record.result(tmp_path / "run"), GOLDEN["resumed"])

"""Gradients that devices scatter among each other equal those of one device."""

import functools
import json

import pytest

from tests.parallel.programs import run_program


@functools.cache
def run(root, seed):
    return json.loads(run_program(root, "gradients_program.py", seed))


@pytest.fixture
def found(root):
    return run(root, 0)


def test_every_mesh_and_scattering_in_stages_equal_one_device(found):
    assert len(found["exact"]) == 6
    assert max(found["exact"].values()) < 1e-13, found


def test_reduce_dtype_rounds_what_is_sent(found):
    assert 2**-12 < found["bfloat16"] < 2**-5, found


def test_no_kernel_is_summed_whole_on_all_devices(found):
    assert "reduce-scatter" in found["kinds"] and found["whole"] in ([], ["all-gather"]), found

"""Gradients that devices scatter among each other equal those of one device."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("gradients_program.py")


@functools.cache
def run(root, seed):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(seed)],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | dict(XLA_FLAGS=flags),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


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

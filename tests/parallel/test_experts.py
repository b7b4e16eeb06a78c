"""Experts split over devices: outputs, losses and gradients equal those of one device."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).with_name("experts_program.py")


def run(root, *arguments):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | dict(XLA_FLAGS=flags),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_split_mixture_equals_one_device(root):
    found = run(root, 0, 1)["mixtures"]
    assert set(found) == {"fsdp 2, tensor 2, expert 2"}
    assert max(found.values()) < 1e-10, found


@pytest.mark.slow
def test_any_mixture_on_any_mesh_and_training_equal_one_device(root):
    found = run(root, 3, 5)
    assert max(found["mixtures"].values()) < 1e-10, found
    models = found["models"]
    expected, whole = models.pop("one device")
    assert whole == [2, 8, 16, 16]  # (repeats, experts, width, hidden)
    for losses, _ in models.values():
        np.testing.assert_allclose(losses, expected, rtol=2e-5)
    assert models["data 2, expert 4"][1] == [2, 2, 16, 16]
    assert models["fsdp 2, tensor 2, expert 2"][1] == [2, 4, 8, 8]

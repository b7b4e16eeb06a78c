"""Models whose layers hand arrays on: results on a mesh equal those of one device."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("sharing_program.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "meshes"),
    [
        ("keys", ["data 2, fsdp 2, tensor 2", "tensor 2, context 2, expert 2"]),
        (
            "streams",
            ["data 2, fsdp 2, tensor 2", "tensor 2, context 2, expert 2", "fsdp 2, expert 4"],
        ),
    ],
)
def test_a_split_model_equals_one_device(root, case, meshes):
    """Hidden states, losses and every gradient.

    "keys" has keys and values of layers below, per-layer inputs and clamps; "streams" has residual
    streams, pools that one indexer chooses for two layers, and clamped experts.
    """
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), case, *meshes],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | dict(XLA_FLAGS=flags),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert list(found) == meshes
    assert max(found.values()) < 1e-10, found

"""Models whose layers hand arrays on: results on a mesh equal those of one device."""

import json

import pytest

from tests.parallel.programs import run_program


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
    found = json.loads(run_program(root, "sharing_program.py", case, *meshes))
    assert list(found) == meshes
    assert max(found.values()) < 1e-10, found

"""Memory of a process that imports a checkpoint of 200 MB: one copy of the model, and little more."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from hybridlm import convert
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig

MB = 10**6
#: Prints the most memory that the process has had: after its imports and a small model, and at the end.
PROGRAM = """
import json, sys
from hybridlm import cli

def peak():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))

def run(folder, out):
    {action}

run(sys.argv[1], sys.argv[1] + "-out")
before = peak()
run(sys.argv[2], sys.argv[2] + "-out")
print(json.dumps([before, peak()]))
"""
ACTIONS = {
    "opened": "from hybridlm.runs import open_model; sys.kept = open_model(folder)",
    "written": 'assert not cli.main(["convert", "import", "--from", folder, "--out", out])',
    "read late": (
        "from hybridlm.runs.checkpoint import digest; from hybridlm.runs.source import open_source;"
        " digest(open_source(folder).load(optimizer=False))"
    ),
}
#: What each may hold beside the model's three largest tensors: copies of the model in float32, and
#: bytes; Orbax writes 64 MiB of arrays at once, and holds them twice.
COPIES = {"opened": 1.0, "written": 1.0, "read late": 0.0}
BESIDE = {"opened": 0, "written": 2 * 2**26, "read late": 0}


def made(folder, **settings):
    """(bytes of the parameters, bytes of the largest tensor) of a Llama written to a folder."""
    config = ModelConfig(
        pattern="full", mixers={"full": dict(kind="attention", heads=4)}, **settings
    )
    model, rng = Model.of(config), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.random(x.shape, np.float32), model.abstract)
    convert.export(model, params, folder, dtype="bfloat16", shard_bytes=30 * MB)
    leaves = model.by_name(params).values()
    return sum(x.nbytes for x in leaves), max(x.nbytes for x in leaves)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("action", ACTIONS)
def test_a_process_holds_one_copy(action, tmp_path, in_root):
    small, large = tmp_path / "small", tmp_path / "large"
    made(small, width=64, depth=2, vocab_size=64, mlp=dict(hidden=64))
    size, largest = made(large, width=768, depth=7, vocab_size=4096, mlp=dict(hidden=2048))
    assert size > 190 * MB
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(action=ACTIONS[action]), str(small), str(large)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    held = after - before
    allowed = COPIES[action] * size + BESIDE[action] + 3 * largest + 10 * MB
    said = f"{held / MB:.0f} MB for a model of {size / MB:.0f} MB"
    print(said)
    assert held < allowed, f"{said}, where {allowed / MB:.0f} MB are allowed"

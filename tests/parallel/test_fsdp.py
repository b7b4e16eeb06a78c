"""A step split by FSDP sends parameters and gradients, but no activations of the whole batch."""

import os
import subprocess
import sys

from kernels_pallas.testing import collectives

PROGRAM = """
import jax, numpy as np
from hybridlm import config
from hybridlm.train import setup

overrides = [
    ("mesh.data", "1"), ("mesh.fsdp", "4"), ("data.batch_size", "12"), ("data.seq_len", "96"),
]
made, _ = setup.resolve(config.load("configs/demo.py:smoke", overrides))
lowered = setup.lower_step(made, np.ones(made.model.vocab_size, np.float32), jax.devices())
print(lowered.step.compile().as_text())
"""


def test_no_device_receives_the_whole_batch(root):
    environment = os.environ | dict(
        XLA_FLAGS="--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shapes = [
        shape
        for kind, dtype, shape in collectives(done.stdout)
        if kind != "collective-permute"
        and dtype[0] == "f"
        and shape  # token ids are integers and small
    ]
    assert len(shapes) > 20, "no parameters are gathered"
    assert not any(12 in shape for shape in shapes), shapes

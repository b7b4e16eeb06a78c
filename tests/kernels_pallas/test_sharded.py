"""Law 6 for every op, in a separate process with two CPU devices."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent

PROGRAM = """
import jax, numpy as np
from kernels_pallas import testing
from subjects import SUBJECTS

mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
ids = testing.draw_segment_ids(rng, 4, 150)
for draw in SUBJECTS.values():
    testing.check_sharded(draw(rng), rng, mesh, 4, 150, segment_ids=ids)
"""


def test_sharded_over_the_batch_is_single_device():
    environment = os.environ | dict(
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parents[1])]),
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]

"""Every whole mixer obeys every law, with its projections, convolutions, gates and caches."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
import small
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mixer_subjects import seeded

from kernels_pallas.testing import LAWS, check_bfloat16, draw_segment_ids

seeds = st.integers(0, 2**32 - 1)
by_law = pytest.mark.parametrize("law", LAWS)
by_mixer = pytest.mark.parametrize("mixer", small.MIXERS)
one_draw = settings(max_examples=1, deadline=None, phases=[Phase.generate])
FIRST = {
    m["kind"]: name for name, m in reversed(small.MIXERS.items())
}  # first variant of each kind


def hold(mixer, law, seed):
    with jax.enable_x64(True):
        LAWS[law](*seeded(mixer, seed))


@pytest.mark.parametrize(
    "mixer, law",
    [(mixer, "packed = separate") for mixer in FIRST.values()]
    + [(FIRST[kind], "decode = whole") for kind in ("attention", "mla", "nha", "rglru")]
    + [(FIRST[kind], "contained") for kind in ("attention", "dsa", "gdn")],
)
@one_draw
@given(seed=seeds)
def test_law(mixer, law, seed):
    hold(mixer, law, seed)


@pytest.mark.slow
@by_law
@by_mixer
@one_draw
@given(seed=seeds)
def test_every_law_of_every_variant(mixer, law, seed):
    hold(mixer, law, seed)


@pytest.mark.slow
@by_mixer
@one_draw
@given(seed=seeds)
def test_bfloat16(mixer, seed):
    with jax.enable_x64(True):
        subject, rng = seeded(mixer, seed)
        check_bfloat16(subject, rng, 2, 70, draw_segment_ids(rng, 2, 70, padding=0.1))


PROGRAM = """
import sys
import jax, numpy as np
from kernels_pallas import testing
from mixer_subjects import mixer_subject

mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
ids = testing.draw_segment_ids(rng, 4, 70)
testing.check_sharded(
    mixer_subject(sys.argv[1]), rng, mesh, 4, 70, segment_ids=ids, with_state=False
)
"""


@pytest.mark.slow
@by_mixer
def test_sharded_over_the_batch_equals_a_single_device(mixer):
    """Law 6, in a separate process with two CPU devices."""
    here = pathlib.Path(__file__).parent
    environment = os.environ | dict(
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        PYTHONPATH=os.pathsep.join([str(here), str(here.parents[1])]),
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mixer], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]

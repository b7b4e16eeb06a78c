"""Every kernel compiles for every chip, no worse than in the committed scorecard: `make aot`."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("libtpu", reason="the compilers of absent chips have their own: `make aot`")

from kernels_pallas.aot import cases, scorecard

CASES, COMPILED = cases.by_name(), cases.ours()


@pytest.mark.parametrize("name, chip", COMPILED, ids=[f"{n} on {c}" for n, c in COMPILED])
def test_no_kernel_got_worse(name, chip, root):
    results = scorecard.compile_all([CASES[name]], [chip])
    assert results[name][chip]["compiles"], results[name][chip]["reason"]
    committed = scorecard.read(root / "benchmarks/scorecard.json")["cases"]
    assert scorecard.worse(results, committed) == []


OWN = """
import jax
from jax.experimental import pallas as pl

def body(x_ref, y_ref):
    y_ref[...] = 2 * x_ref[...]

def double(x):
    block = pl.BlockSpec((256, x.shape[1]), lambda i: (i, 0))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    grid = (x.shape[0] // 256,)
    return pl.pallas_call(body, grid=grid, in_specs=[block], out_specs=block, out_shape=shape)(x)

def no_kernel(x):
    return 2 * x
"""


def test_a_kernel_of_ones_own(root, tmp_path, monkeypatch):
    """The bundles of a user's function are counted; a function without a kernel fails with a message."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.setenv("PYTHONPATH", str(root))

    def run(name, shape="f32[1024,512]"):
        command = ["-m", "kernels_pallas.aot", "--chips", "v5e,v7x", "--kernel", name]
        return subprocess.run(
            [sys.executable, *command, "--shapes", shape],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    done = run("own:double")
    assert done.returncode == 0, done.stderr
    for result in json.loads(done.stdout).values():
        (kernel,) = result["kernels"].values()
        assert kernel["steps"] == 4 and kernel["spills"] == 0
        assert kernel["slots"]["VSTORE"] >= 1024 * 512 / 1024

    for name, shape, why in (
        ("own:no_kernel", "f32[1024,512]", "calls no Pallas kernel"),
        ("own:double", "1024x512", "a shape must be written like"),
        ("missing:double", "f32[8]", "No module named 'missing'"),
    ):
        done = run(name, shape)
        assert done.returncode == 1
        assert all(why in result["reason"] for result in json.loads(done.stdout).values())
    assert "my.module:function" in run("own").stderr

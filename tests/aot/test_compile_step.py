"""The training step compiled ahead of time, for simulated devices and for a TPU slice."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

COMMITTED = pathlib.Path(__file__).parents[2] / "benchmarks" / "compile_ahead.json"

OVERRIDES = [
    ("mesh.data", "1"),
    ("mesh.fsdp", "4"),
    ("train.remat", "full"),
    ("model.pattern", "swa"),
    ("model.depth", "2"),
]

SCRIPT = f"""
import pathlib, sys
import jax, jax.numpy as jnp
import numpy as np
from hybridlm import config as configs, progress
from hybridlm.aot import measure, saved, topology
from hybridlm.train import optimizer, setup

progress.PATIENCE = 0.0
config = configs.load("configs/demo.py:smoke", {OVERRIDES!r})
config, _ = setup.resolve(config)
target = topology.CompileTarget("cpu", "cpu", jax.devices(), 2**30, 1e12, 1e11, 1e10)
compiled = measure.compile_step(config, target)

memory, sizes = compiled.memory, compiled.step.memory_analysis()
arguments = memory.parameters + memory.optimizer + memory.batch + memory.padding
assert arguments == sizes.argument_size_in_bytes
assert memory.padding == 0
count = compiled.lowered.model.count()
assert count <= memory.parameters < 1.1 * count, (count, memory)  # 4 bytes each, in 4 shards
assert 2 * memory.parameters <= memory.optimizer < 2 * memory.parameters + 64
numbers = 4 * len(optimizer.ScheduleNumbers._fields)  # on every device
assert memory.batch == 5 * 4 * config.tokens_per_step / 4 + numbers
assert memory.temporaries == sizes.temp_size_in_bytes > 0

# Remat adds a third, and the loop over layers counts once per layer.
share = compiled.model_flops / 4
assert share < compiled.cost.flops < 3 * share, (share, compiled.cost)
assert compiled.cost.unknown_loops == 0, compiled.cost
assert compiled.cost.collectives and compiled.cost.kernels == {{}}

# The saved step loads and returns the same results.
folder = pathlib.Path(sys.argv[1])
saved.save(folder, {{"figure": 1}}, compiled.step)
loaded = saved.load(folder)

def zeros(tree):
    return jax.tree.map(lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), tree)

batch = zeros(setup.abstract_batch(config, compiled.lowered.mesh))
results = [step(zeros(compiled.lowered.abstract), batch) for step in (compiled.step, loaded)]
jax.tree.map(np.testing.assert_array_equal, *results)
print("all checks passed")
"""


def test_on_four_simulated_devices(root, tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "out")],
        cwd=root,
        text=True,
        capture_output=True,
        env=os.environ | {"XLA_FLAGS": flags.strip()},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("all checks passed\n")
    for work in ("tracing and lowering the training step", "compiling the training step for cpu"):
        assert f"{work} ...\n" in done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == {"figure": 1}


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: `make aot` makes an environment that has it",
)


def compile_in_process(root, out, *words):
    """Runs `hybridlm compile` in a new process, because libtpu reads its settings once."""
    done = subprocess.run(
        [sys.executable, "-m", "hybridlm.cli", "compile", "--out", str(out), *words],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    return done, json.loads((out / "report.json").read_text())


needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="jax's CUDA plugin is not installed: `make aot` makes an environment that has it",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology",
    [pytest.param("v5e:2x2", marks=needs_libtpu), pytest.param("h100:4", marks=needs_cuda_plugin)],
)
def test_a_small_step_for_four_chips(root, tmp_path, topology):
    words = ("--config", "configs/demo.py:smoke", "--config.mesh.data=1", "--config.mesh.fsdp=4")
    words += ("--topology", topology, "--largest", "3")
    done, report = compile_in_process(root, tmp_path, *words)
    assert done.returncode == 0 and "it fits" in done.stdout
    total = float(done.stdout.split("others\n")[1].split()[0])  # of the listed instructions
    assert total == pytest.approx(report["step"]["hbm_bytes"] / 1e9, abs=0.006)
    assert report["devices"] == 4 and report["step"]["flops"] >= 0.9 * report["step"]["model_flops"]
    assert report["step"]["fits"] and report["step"]["collectives"]
    assert (tmp_path / "step.pickle").stat().st_size > 0


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name", ["hybrid_1b", "hybrid_7b"])  # `hybrid_70b` takes 2 minutes more
def test_a_recipe_fits_its_slice_with_the_published_figures(root, tmp_path, name):
    committed = json.loads(COMMITTED.read_text())[name]
    words = ("--config", f"configs/scale/{name}.py", "--topology", committed["topology"])
    done, report = compile_in_process(root, tmp_path, *words)
    assert report["devices"] == committed["devices"]
    assert done.returncode == 0 and report["step"]["fits"], report["step"]
    kernels = report["step"]["kernels"]  # each chip runs them on its shard
    assert any("attention" in k for k in kernels) and any("delta_rule" in k for k in kernels)
    assert published(report) == pytest.approx(published(committed), rel=0.05)


def published(report):
    """Work of a step, a number each."""
    step = report["step"]
    sent = {kind: c["sent"] for kind, c in step["collectives"].items() if c["sent"] > 1e7}
    work = {name: step[name] for name in ("flops", "hbm_bytes")}
    return work | sent | dict(temporaries=step["memory"]["temporaries"])


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("case", ["dense", "llama7b"])  # `delta` takes 4 to 6 minutes of a core
def test_a_step_compared_with_maxtexts_has_the_published_figures(root, tmp_path, monkeypatch, case):
    monkeypatch.syspath_prepend(root / "benchmarks")
    import compile_peers

    committed = compile_peers.kept()[f"{case}, hybridlm, best"]
    words = [json.dumps(committed["request"]), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks/peers/our_step.py"), *words],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = compile_peers.figures(tmp_path, committed["request"]["topology"])
    names = ("TFLOP", "hbm_GB", "sent_GB", "temporaries_GiB")
    assert {n: found[n] for n in names} == pytest.approx({n: committed[n] for n in names}, rel=0.05)

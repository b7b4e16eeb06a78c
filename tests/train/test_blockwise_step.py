"""Blockwise distillation: each layer reaches what it can express, whatever the other layers do."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from hybridlm import cli
from hybridlm.probes.settings import ProbesConfig
from hybridlm.runs import checkpoint, metrics, open_model, save_model
from hybridlm.train.live_probes import live_probes
from hybridlm.train.loop import train
from tests.train.distilling import Stepper, config, save_pair

#: Native Hybrid Attention that keeps all tokens can express softmax attention exactly.
EXACT = dict(kind="nha", window=None, empty_slots="masked", slots=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair")
    save_pair(path, EXACT, noise=0.05, depth=3)
    return path


@pytest.fixture(scope="module")
def stepper(folder):
    optimizer = dict(lr=1e-2, schedule="cosine", final_lr_fraction=0.0)
    return Stepper(config(folder, optimizer=optimizer, steps=250))


def test_attention_that_the_student_can_express_is_learned(stepper):
    state, found = stepper.run(250)
    first, last = found[0], found[-1]
    assert first["relative_error"] > 0.1
    assert last["relative_error"] < 2e-5 and last["skipped"] == 0
    assert all(last[f"mse_layer_{i}"] < 1e-4 * first[f"mse_layer_{i}"] for i in range(3))
    student, teacher = stepper.model, stepper.lowered.teacher
    named = student.by_name(state["params"])
    for name, value in teacher.by_name(jax.device_get(stepper.taught)).items():
        if ".mixer." not in name:  # frozen, and the teacher's
            np.testing.assert_array_equal(named[name], value, err_msg=name)


@pytest.mark.slow
def test_the_exact_mixer_has_no_error_and_no_gradient(tmp_path):
    save_pair(tmp_path, EXACT)
    _, found = Stepper(config(tmp_path)).run(1)
    assert found[0]["relative_error"] < 1e-11 and found[0]["grad_norm"] < 1e-6


@pytest.mark.parametrize("what", ["NaN", "diverging"])
def test_a_layer_that_is_not_finite_changes_no_bit_of_another(stepper, what):
    params = stepper.params
    broken = jax.tree.map(np.array, stepper.model.layer(params, 1))
    broken["mixer"]["v"]["kernel"][0, 0] = {"NaN": np.nan, "diverging": 1e30}[what]
    wrong = stepper.model.with_layer(params, 1, broken)
    states, found = zip(*(stepper.run(4, p) for p in (params, wrong)))
    assert [m["layers_skipped"] for m in found[1]] == [1.0] * 4
    assert found[1][-1]["skipped"] == 0
    named = [stepper.model.by_name(s["params"]) for s in states]
    for name in named[0]:
        if not name.startswith("layers.1."):
            np.testing.assert_array_equal(named[0][name], named[1][name], err_msg=name)
    unchanged = stepper.model.by_name(wrong)
    for name, value in named[1].items():
        if name.startswith("layers.1."):
            np.testing.assert_array_equal(value, unchanged[name], err_msg=name)


@pytest.mark.slow
def test_clipping_one_layer_leaves_the_others(folder):
    """A layer of large gradients is clipped by its own norm."""
    clipped = Stepper(config(folder, optimizer=dict(clip_norm=1e-3, b1=0.0, eps=1.0)))
    params = clipped.params
    large = jax.tree.map(np.array, clipped.model.layer(params, 1))
    large["mixer"]["out"]["kernel"] *= 50
    states = [clipped.run(1, p)[0] for p in (params, clipped.model.with_layer(params, 1, large))]
    one, two = (clipped.model.by_name(s["params"]) for s in states)
    for name in one:
        if not name.startswith("layers.1."):
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.slow
def test_accumulated_batches_give_the_same_step(folder):
    whole = Stepper(config(folder)).run(2)[0]
    parts = Stepper(config(folder, accumulate=2))
    found = parts.run(2)[0]
    model = parts.model
    for a, b in zip(*(model.by_name(s["params"]).values() for s in (whole, found))):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective, figure", [("blockwise", "loss"), ("kl", "kl")])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, in_root, objective, figure):
    """Runs the loop: data, checkpoints, records, probes, the teacher's hash and speed; then the report."""
    save_pair(tmp_path, dict(kind="nha", window=4, slots=4), noise=0.05)
    probed = ProbesConfig(which=("slot_share",), interval=3, samples=2, length=256)
    given = dataclasses.replace(config(tmp_path, teacher=dict(objective=objective)), probes=probed)
    assert train(given, tmp_path / "whole", callback=live_probes(given)) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / checkpoint.FOLDER / "6")
    assert train(given, tmp_path / "stopped", callback=live_probes(given)) == 0
    whole, again = (open_model(tmp_path / name).params for name in ("whole", "stopped"))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    records = [metrics.read(tmp_path / name / metrics.FILE) for name in ("whole", "stopped")]
    trained = [[r for r in of if r["kind"] == "train"] for of in records]
    assert [r[figure] for r in trained[0]] == [r[figure] for r in trained[1]]
    run = next(r for r in records[0] if r["kind"] == "run")
    assert run["teacher"]["tokens_per_second"] > 0
    assert all(r["of_teacher_forward"] > 0 for r in trained[1])
    assert trained[0][-1][figure] < trained[0][0][figure]
    probes = [metrics.read(tmp_path / name / "probes.jsonl") for name in ("whole", "stopped")]
    shares = [[r for r in of if r["kind"] == "slot_share"] for of in probes]
    assert shares[0] == shares[1] and {r["step"] for r in shares[0]} == {3, 6}
    assert cli.main(["report", "--workdir", str(tmp_path / "stopped")]) == 0
    page = (tmp_path / "stopped" / "report.html").read_text()
    assert "<h2>Distillation</h2>" in page and "slot_share, step 6" in page


@pytest.mark.slow
def test_a_run_with_a_layer_that_is_not_finite_trains_the_others_to_its_end(
    folder, tmp_path, in_root
):
    """Though the held-out loss of the whole student is not a number."""
    shutil.copytree(folder, tmp_path / "pair")
    student = open_model(folder / "student")
    layer = jax.tree.map(np.array, student.model.layer(student.params, 1))
    layer["mixer"]["v"]["kernel"][0, 0] = np.nan
    broken = dataclasses.replace(student, params=student.model.with_layer(student.params, 1, layer))
    shutil.rmtree(tmp_path / "pair" / "student")
    save_model(broken, tmp_path / "pair" / "student")
    assert train(config(tmp_path / "pair"), tmp_path / "run") == 0
    records = metrics.read(tmp_path / "run" / metrics.FILE)
    trained = [r for r in records if r["kind"] == "train"]
    assert [r["layers_skipped"] for r in trained] == [1.0] * 6
    assert trained[-1]["mse_layer_0"] < trained[0]["mse_layer_0"]
    (heldout,) = [r for r in records if r["kind"] == "eval"]
    assert not np.isfinite(heldout["loss"])


SHARDED = """
import json, sys
from tests.train.distilling import Stepper, config
import pathlib, jax
folder, mesh, teacher = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
state, found = Stepper(config(pathlib.Path(folder), mesh=mesh, teacher=teacher)).run(3)
print(json.dumps([len(jax.devices()), found]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["blockwise", "kl"])
def test_sharded_is_a_single_device(objective, tmp_path, root):
    save_pair(tmp_path, dict(kind="gdn"), depth=2, noise=0.02)
    found = []
    for devices, mesh in ((1, {}), (4, dict(fsdp=2, tensor=2))):
        flags = f"--xla_force_host_platform_device_count={devices}"
        flags += " --xla_backend_optimization_level=0"
        words = [str(tmp_path), json.dumps(mesh), json.dumps(dict(objective=objective))]
        done = subprocess.run(
            [sys.executable, "-c", SHARDED, *words],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
            cwd=root,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        count, steps = json.loads(done.stdout.splitlines()[-1])
        assert count == devices
        found.append(steps)
    for one, many in zip(*found):
        for name, value in one.items():
            assert many[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name

"""Runs in a bucket: checkpoints are complete or absent, one process writes, records are stored."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.errors import RunError
from hybridlm.runs import checkpoint, metrics
from hybridlm.runs.checkpoint import Checkpoints
from hybridlm.runs.workdir import RunSettings, Workdir
from hybridlm.storage import objects, open_path
from hybridlm.storage.filesystem import COMMIT_MARK


def settings(seed):
    return RunSettings({"seed": seed}, (), lambda old: old, (), lambda *_: None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def state(seed):
    values = np.random.default_rng(seed).normal(size=(7, 33)).astype(np.float32)
    return {"params": {"a": jnp.asarray(values), "b": jnp.asarray(values[0], jnp.bfloat16)}}


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_checkpoints_without_their_mark_do_not_count(bucket):
    run, saved = open_path(bucket), {step: state(step) for step in (1, 2, 3)}
    checkpoints = Checkpoints(run, keep=2)
    for step, tree in saved.items():
        checkpoints.save(step, tree, {})
    checkpoints.close()
    assert checkpoint.steps(run) == [2, 3]
    same(checkpoint.load_numpy(run)[1], saved[3])

    (run / checkpoint.FOLDER / "3" / COMMIT_MARK).unlink()  # as a killed save leaves it
    assert checkpoint.steps(run) == [2]
    same(checkpoint.load_numpy(run)[1], saved[2])
    again = Checkpoints(run, keep=2)
    assert again.latest_step == 2
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved[2]
    )
    same(again.restore(like), saved[2])
    again.save(3, saved[3], {})
    again.close()
    assert checkpoint.steps(run) == [2, 3]
    same(checkpoint.load_numpy(run, 3)[1], saved[3])


def test_a_workdir_is_leased_and_its_records_are_stored_by_a_flush(bucket):
    folder = Workdir.open(bucket, settings(1))
    with pytest.raises(RunError, match="another process is training in"):
        Workdir.open(bucket, settings(1))
    folder.begin({"seed": 1})
    writers = metrics.Writers([metrics.JsonlWriter(folder.local / metrics.FILE), *folder.uploads()])
    writers.write({"kind": "train", "step": 1, "loss": 2.0})
    writers.flush()
    assert [r["step"] for r in metrics.read(open_path(bucket) / metrics.FILE)] == [1]
    writers.write({"kind": "train", "step": 2, "loss": 1.0})
    writers.close()
    folder.close()
    with pytest.raises(RunError, match="holds a run of another config"):
        Workdir.open(bucket, settings(2))
    again = Workdir.open(bucket, settings(1))
    assert [r["step"] for r in metrics.read(again.local / metrics.FILE)] == [1, 2]
    metrics.cut_back(again.local / metrics.FILE, 1)
    again.close()
    assert [r["step"] for r in metrics.read(open_path(bucket) / metrics.FILE)] == [1]
    assert objects.keys(bucket) == ["config.json", "metrics.jsonl"]


# --- whole runs ---------------------------------------------------------------------------------

CHANGES = [
    "--config.train.steps=30",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=3",
    "--config.train.eval_every=10",
    "--config.train.eval_sequences=4",
    "--config.sample.tokens=5",
    "--config.data.bigram_baseline=False",
]


def start(workdir, root, log, *more):
    words = [
        "train",
        "--config",
        "configs/demo.py:smoke",
        "--workdir",
        str(workdir),
        *CHANGES,
        *more,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "hybridlm.cli", *words], cwd=root, stdout=log, stderr=log
    )


def finish(workdir, root, log, *more):
    code = start(workdir, root, log, *more).wait(timeout=300)
    log.seek(0)
    return code, log.read()


def losses(workdir):
    records = metrics.read(open_path(workdir) / metrics.FILE)
    return [(r["kind"], r["step"], r.get("loss"), r.get("text")) for r in records]


def hashes(command, workdir):
    code, out, err = command("inspect", workdir)
    assert code == 0, err
    return re.findall(r"(\w+_sha256): (\w+)", out)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, root_path):
    folder = tmp_path_factory.mktemp("local")
    with (folder / "log").open("w+") as log:
        code, said = finish(folder / "run", root_path, log)
    assert code == 0, said[-3000:]
    return folder / "run"


@pytest.fixture(scope="module")
def root_path():
    return pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_killed_while_it_saves_ends_with_the_bits_of_a_local_run(
    bucket, gate, root, uninterrupted, command, tmp_path
):
    with (tmp_path / "log").open("w+") as log:
        for number, kind in enumerate(("checkpoints/6/state", "checkpoints/15/", "metrics.jsonl")):
            gate.requests.clear()
            process = start(bucket, root, log)
            deadline = time.monotonic() + 120
            want = kind.replace("/", "%2F") if bucket.startswith("gs") else kind
            while time.monotonic() < deadline and process.poll() is None:
                writes = [p for m, p in list(gate.requests) if m in ("PUT", "POST")]
                seen = [p for p in writes if want in p]
                if len(seen) > 2 * number:
                    break
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
        code, said = finish(bucket, root, log)
    assert code == 0, said[-3000:]
    assert losses(bucket) == losses(uninterrupted)
    assert hashes(command, bucket) == hashes(command, uninterrupted)
    assert [s for s in checkpoint.steps(open_path(bucket))] == checkpoint.steps(uninterrupted)


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_trains(bucket, root, tmp_path):
    with (tmp_path / "1").open("w+") as one, (tmp_path / "2").open("w+") as two:
        first = start(bucket, root, one, "--config.train.steps=100000")
        deadline = time.monotonic() + 60
        while not objects.exists(f"{bucket}/.lease") and time.monotonic() < deadline:
            time.sleep(0.1)
        code, said = finish(bucket, root, two)
        assert code == 2 and f"process {first.pid} on " in said, said
        assert first.poll() is None, "the first goes on"
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=120) == 75
    assert ".lease" not in objects.keys(bucket)


@pytest.mark.slow
def test_a_server_that_fails_for_a_while_delays_a_run_and_no_more(
    bucket, gate, root, uninterrupted, tmp_path
):
    with (tmp_path / "log").open("w+") as log:
        process = start(bucket, root, log)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not checkpoint.steps(open_path(bucket)):
            time.sleep(0.05)
        gate.fail_for(6)
        code = process.wait(timeout=300)
        log.seek(0)
        said = log.read()
    assert code == 0, said[-3000:]
    assert "no answer for 2 s" in said
    assert losses(bucket) == losses(uninterrupted)


@pytest.mark.slow
def test_every_command_reads_a_run_in_a_bucket(bucket, in_root, command, tmp_path, uninterrupted):
    for path in sorted(uninterrupted.rglob("*")):
        if path.is_file() and path.name != ".lock":
            name = path.relative_to(uninterrupted).as_posix()
            objects.write(f"{bucket}/run/{name}", path.read_bytes())
    for folder in (uninterrupted / checkpoint.FOLDER).iterdir():
        objects.write(f"{bucket}/run/checkpoints/{folder.name}/{COMMIT_MARK}", b"copied")
    run = f"{bucket}/run"
    assert hashes(command, run) == hashes(command, uninterrupted)
    said = {}
    for name, where in (("here", uninterrupted), ("there", run)):
        out = tmp_path / "out" if name == "here" else f"{bucket}/out"
        assert command("report", "--workdir", where)[0] == 0
        made = command("generate", "--workdir", where, "--prompt", "Fellow", "--tokens", "5")
        assert made[0] == 0, made
        done = command(
            "eval",
            "--workdir",
            where,
            "--lengths",
            "256",
            "--tasks",
            "needle",
            "--samples",
            "2",
            "--out",
            out,
        )
        assert done[0] == 0, done
        said[name] = made[1], json.loads((open_path(out) / "eval.json").read_bytes())["records"]
    assert said["here"] == said["there"]
    assert (open_path(run) / "report.html").exists()


@pytest.mark.slow
def test_a_sweep_in_a_bucket_counts_its_finished_runs(bucket, in_root, command):
    words = ["sweep", "--config", "configs/sweeps/window.py:smoke", "--root", bucket, *CHANGES[1:]]
    words += ["--config.train.steps=4"]
    code, out, err = command(*words)
    assert code == 0, err
    again = command(*words)[1]
    assert again.count("finished") >= 3 and "nothing to do" in again, again

"""A run killed with SIGKILL at any time and started again ends with an uninterrupted run's bits.

The tests kill processes during start-up, a step, a save and an evaluation. The times are drawn
from a new seed, which the test prints.
"""

import contextlib
import io
import json
import random
import signal
import subprocess
import sys
import time

import pytest

from hybridlm import cli

pytestmark = pytest.mark.xdist_group("kill_and_resume")  # all tests share an uninterrupted run

SETTINGS = [
    "--config.train.steps=40",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=5",
    "--config.train.eval_every=10",
    "--config.train.eval_sequences=4",
    "--config.sample.tokens=20",
    "--config.data.bigram_baseline=False",
    "--config.train.tensorboard=False",
]
# Only these measured figures may differ between two runs.
CLOCK = {
    "step_seconds_p50",
    "step_seconds_p90",
    "tokens_per_second",
    "real_tokens_per_second",
    "data_wait_share",
    "mfu",
    "real_mfu",
    "eta_seconds",
    "compile_seconds",
    "memory_bytes",
    "peak_flops",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder for token shards that all runs share."""
    return tmp_path_factory.mktemp("shared")


def command(workdir, shared):
    cache = f"--config.data.token_cache={shared / 'tokens'}"
    return [
        sys.executable,
        "-m",
        "hybridlm.cli",
        "train",
        "--config",
        "configs/demo.py:smoke",
        "--workdir",
        str(workdir),
        cache,
        *SETTINGS,
    ]


def start(workdir, shared, root):
    log = open(workdir.with_suffix(".log"), "a")
    return subprocess.Popen(command(workdir, shared), cwd=root, stdout=log, stderr=log)


def finish(workdir, shared, root):
    code = start(workdir, shared, root).wait(timeout=300)
    assert code == 0, workdir.with_suffix(".log").read_text()[-3000:]


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def outcome(workdir):
    """The records without `CLOCK`, and the hashes that `hybridlm inspect` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert cli.main(["inspect", str(workdir)]) == 0
    hashes = [line for line in output.getvalue().splitlines() if "sha256" in line]
    assert hashes
    kept = [{k: v for k, v in r.items() if k != "data"} for r in records(workdir)]
    return kept, hashes


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, shared, request):
    root = request.config.rootpath
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    finish(workdir, shared, root)
    return (*outcome(workdir), workdir)


def reached(workdir, step):
    """Whether training has recorded `step`."""
    file = workdir / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return f'"kind": "train", "step": {step},' in text


def saving(workdir):
    """Whether a checkpoint is being written."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any("tmp" in p.name for p in folder.iterdir())


PHASES = {
    "start-up": lambda workdir, rng: time.sleep(rng.uniform(0.5, 4)) or True,
    "first steps": lambda workdir, rng: reached(workdir, rng.randint(1, 4)),
    "a step": lambda workdir, rng: reached(workdir, rng.randint(6, 34)),
    "a save": lambda workdir, rng: saving(workdir),
    "an evaluation": lambda workdir, rng: reached(workdir, 10),
    "the end": lambda workdir, rng: reached(workdir, 40),
}


RARELY = ("start-up", "first steps", "the end")


def kill_in(phase, workdir, shared, root, rng):
    """Starts the run and kills it in the phase; True if it was killed or had completed."""
    process = start(workdir, shared, root)
    seed = rng.random()
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if PHASES[phase](workdir, random.Random(seed)):
            time.sleep(rng.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return process.poll() == 0


@pytest.mark.parametrize(
    "phase", [pytest.param(p, marks=[pytest.mark.slow] * (p in RARELY)) for p in PHASES]
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    phase, uninterrupted, shared, tmp_path, root
):
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    rng = random.Random(seed)
    workdir = tmp_path / "run"
    assert kill_in(phase, workdir, shared, root, rng)
    finish(workdir, shared, root)
    kept, hashes = outcome(workdir)
    assert hashes == uninterrupted[1]
    assert kept == uninterrupted[0]


@pytest.mark.slow
def test_a_run_killed_many_times_equals_an_uninterrupted_one(uninterrupted, shared, tmp_path, root):
    """Ten kills, each 1 to 14 seconds after a start."""
    rng = random.Random(random.SystemRandom().randrange(2**31))
    workdir = tmp_path / "run"
    for _ in range(10):
        process = start(workdir, shared, root)
        time.sleep(rng.uniform(1, 14))
        process.kill()
        process.wait()
    finish(workdir, shared, root)
    assert outcome(workdir) == uninterrupted[:2]


def test_sigterm_saves_and_exits_75(uninterrupted, shared, tmp_path, root):
    workdir = tmp_path / "run"
    process = start(workdir, shared, root)
    while not reached(workdir, 7) and process.poll() is None:
        time.sleep(0.002)
    process.terminate()
    assert process.wait(timeout=120) == 75
    log = workdir.with_suffix(".log").read_text()
    assert "SIGTERM received: saved step" in log and "the same command resumes from there" in log
    finish(workdir, shared, root)
    kept, hashes = outcome(workdir)
    assert hashes == uninterrupted[1]
    assert kept == uninterrupted[0]


def test_starting_a_completed_run_again_changes_nothing(uninterrupted, shared, root):
    *before, workdir = uninterrupted
    finish(workdir, shared, root)
    assert outcome(workdir) == tuple(before)
    assert "already done" in workdir.with_suffix(".log").read_text()

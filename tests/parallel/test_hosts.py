"""Runs on several hosts, as processes on this machine that are killed and stopped."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from hybridlm.errors import UserError
from hybridlm.parallel import hosts
from hybridlm.runs import lineage, metrics
from hybridlm.runs.checkpoint import steps as checkpoint_steps

pytestmark = pytest.mark.xdist_group("hosts")  # the tests share one single-host run
ENVIRONMENT = os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_backend_optimization_level=0")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(root, workdir: pathlib.Path, count: int, *overrides: str):
    """Starts a run on `count` hosts and kills the hosts still alive at the end."""
    workdir.parent.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "hybridlm.cli", "train", "--config", "configs/demo.py:smoke"]
    words += ["--workdir", str(workdir), "--config.data.bigram_baseline=False"]
    words += ["--config.sample.tokens=0", "--config.train.tensorboard=False", *overrides]
    coordinator = f"localhost:{free_port()}"
    processes = []
    for index in range(count):
        place = ["--coordinator", coordinator, "--num_processes", str(count)]
        place += ["--process_id", str(index)] if count > 1 else []
        log = workdir.with_name(f"{workdir.name}.{count}.{index}.log").open("w+")
        processes.append(
            subprocess.Popen(
                words + (place if count > 1 else []),
                cwd=root,
                env=ENVIRONMENT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
        processes[-1].log = log
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            process.log.close()


def output(process) -> str:
    process.log.seek(0)
    return process.log.read()


def codes(processes, timeout: float = 240) -> list[int]:
    """Exit codes, in order; fails with the output if a process does not exit in time."""
    end = time.monotonic() + timeout
    try:
        return [p.wait(max(0.1, end - time.monotonic())) for p in processes]
    except subprocess.TimeoutExpired:
        raise AssertionError("\n---\n".join(output(p)[-2000:] for p in processes)) from None


def losses(workdir: pathlib.Path) -> dict[int, float]:
    records = metrics.read(workdir / metrics.FILE)
    return {r["step"]: r["loss"] for r in records if r["kind"] == "train"}


def work(workdir: pathlib.Path) -> list[tuple[int, float]]:
    """Tokens and FLOPs of the documents of each recorded step."""
    records = metrics.read(workdir / metrics.FILE)
    train = [r for r in records if r["kind"] == "train"]
    return [(r["step_real_tokens"], r["step_real_flops"]) for r in train]


def wait_for_step(workdir: pathlib.Path, step: int, processes) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        if max(losses(workdir), default=0) >= step:
            return
        assert all(p.poll() is None for p in processes), [output(p)[-2000:] for p in processes]
        time.sleep(0.2)
    raise AssertionError(f"step {step} was not reached: {[output(p)[-2000:] for p in processes]}")


def run(root, workdir, count, *overrides):
    with started(root, workdir, count, *overrides) as processes:
        assert codes(processes) == [0] * count, [output(p)[-3000:] for p in processes]
        return [output(p) for p in processes]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pathlib.Path:
    """The single-host run that the other runs are compared with."""
    root, workdir = pathlib.Path(__file__).parents[2], tmp_path_factory.mktemp("hosts") / "alone"
    run(root, workdir, 1)
    return workdir


def test_two_hosts_train_like_one(root, tmp_path, alone):
    """The loss curve and what was read are the same; only the first host records, prints and reports."""
    first, second = run(root, tmp_path / "two", 2)
    ours, theirs = losses(tmp_path / "two"), losses(alone)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    assert work(tmp_path / "two") == work(alone)
    assert "report: " in first and "step 8/8" in first
    assert "step" not in second.replace("[Gloo]", "")
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert len(environment["devices"]) == 2


@pytest.mark.slow
def test_two_hosts_begin_from_a_run_like_one(root, tmp_path, alone):
    """Each host takes its own shards of the parameters and moments; the first writes the lineage."""
    words = ["--init_from", f"{alone}@4", "--config.init.optimizer=True"]
    words += ["--config.model.vocab_size=384", "--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    run(root, tmp_path / "one", 1, *words)
    run(root, tmp_path / "two", 2, *words)
    ours, theirs = losses(tmp_path / "two"), losses(tmp_path / "one")
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    assert lineage.read(tmp_path / "two") == lineage.read(tmp_path / "one") != []


@pytest.mark.slow
def test_probes_use_the_parameters_of_all_hosts(root, tmp_path):
    """With parameters split over two hosts, probes give the same results as on one host."""
    settings = [
        f"--config.{key}={value}"
        for key, value in {
            "probes.which": "['heads']",
            "probes.length": 256,
            "probes.samples": 2,
            "probes.interval": 4,
            "model.depth": 3,
        }.items()
    ]
    found = []
    for count in (1, 2):
        workdir = tmp_path / str(count)
        talk = run(root, workdir, count, *settings, f"--config.mesh.fsdp={count}")
        assert "probes at step 8: best mass" in talk[0] and "probes at" not in "".join(talk[1:])
        records = metrics.read(workdir / "probes.jsonl")
        assert [r["step"] for r in records if r["kind"] == "cost"] == [4, 8]
        found.append([r["mass"] for r in records if r["kind"] == "retrieval_heads"])
    assert len(found[0]) > 8
    np.testing.assert_allclose(*found, rtol=1e-3)


@pytest.mark.slow
def test_sigterm_to_one_of_four_hosts_saves_once_and_two_hosts_continue(root, tmp_path, alone):
    workdir, slower = tmp_path / "run", "--config.train.checkpoint_every=1000"
    with started(root, workdir, 4, slower, "--config.train.log_every=1") as processes:
        wait_for_step(workdir, 1, processes)
        processes[2].send_signal(signal.SIGTERM)
        found = codes(processes)
    (step,) = checkpoint_steps(workdir)
    # The run is short: the signal may come too late to stop it before its last step.
    assert found == ([75] * 4 if step < 8 else [0] * 4)
    run(root, workdir, 2, slower)
    np.testing.assert_allclose(losses(workdir)[8], losses(alone)[8], rtol=1e-4)


def test_a_killed_host_ends_the_other_with_one_sentence(root, tmp_path):
    workdir = tmp_path / "run"
    long = ("--config.train.steps=100000", "--config.train.eval_every=100000")
    with started(root, workdir, 2, *long, "--config.train.checkpoint_every=5") as processes:
        wait_for_step(workdir, 10, processes)
        processes[1].kill()
        processes[1].wait()
        assert codes(processes[:1], timeout=60) == [75]
        assert "another host has exited or cannot be reached" in output(processes[0])
    assert checkpoint_steps(workdir), "there is no checkpoint to continue from"


@pytest.mark.slow
def test_after_a_killed_host_the_run_continues_on_four_hosts_and_another_mesh(root, tmp_path):
    settings = [
        f"--config.train.{key}={value}"
        for key, value in dict(steps=80, eval_every=80, checkpoint_every=10, log_every=10).items()
    ]
    run(root, tmp_path / "alone", 1, *settings)
    workdir = tmp_path / "run"
    with started(root, workdir, 2, *settings) as processes:
        wait_for_step(workdir, 30, processes)
        processes[1].kill()
        assert codes(processes[:1], timeout=60) == [75]
    assert 20 <= max(checkpoint_steps(workdir)) < 80
    run(root, workdir, 4, *settings, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    ours, theirs = losses(workdir), losses(tmp_path / "alone")
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)


@pytest.mark.slow
def test_all_hosts_skip_the_same_non_finite_updates(root, tmp_path):
    """The first update makes the parameters so large that all later gradients are not finite."""
    wild = ["--config.optimizer.lr=1e38", "--config.optimizer.warmup_steps=0"]
    wild += ["--config.train.log_every=1", "--config.train.abort_after=4"]
    found = {}
    for count in (1, 2):
        with started(root, tmp_path / str(count), count, *wild) as processes:
            assert codes(processes) == [1] * count
            assert "not finite" in output(processes[0]) or "skipped" in output(processes[0])
        records = metrics.read(tmp_path / str(count) / metrics.FILE)
        found[count] = [r["skipped"] for r in records if r["kind"] == "train"]
    assert found[1] == found[2] and found[1][-1] >= 3


@pytest.mark.slow
def test_a_hanging_host_triggers_the_watchdog_of_the_other(root, tmp_path):
    workdir = tmp_path / "run"
    # The run neither evaluates nor saves, so that the host hangs in a step.
    once = [f"--config.train.{key}=100000" for key in ("steps", "eval_every", "checkpoint_every")]
    with started(root, workdir, 2, *once, "--config.train.hang_seconds=10.0") as processes:
        wait_for_step(workdir, 10, processes)
        processes[1].send_signal(signal.SIGSTOP)
        assert codes(processes[:1], timeout=100) == [75]
        words = output(processes[0])
    assert "host 0 of 2 has hung for" in words and " s in step " in words
    assert "train/loop.py" in words, "the stack trace is missing"


PROGRAM = """
import sys
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from hybridlm.errors import UserError
from hybridlm.parallel import hosts

address, count, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
hosts.start(hosts.Address(address, count, index), "auto", {})
batch = np.random.default_rng(0).integers(0, 99, (2, 8, 8))
for shape, spec in (((count, 1), ("a", "b")), ((1, count), ("a", "b")), ((count, 1), (None, "a"))):
    mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    rows = hosts.Rows.of(NamedSharding(mesh, PartitionSpec(None, *spec)), batch.shape)
    array = rows.arrays({"x": batch.reshape(16, 8)[list(rows.indices)]})["x"]
    np.testing.assert_array_equal(multihost_utils.process_allgather(array, tiled=True), batch)
    if spec[0] and shape[0] == count:
        assert len(rows.indices) == 16 // count, rows.indices  # each host loads only its own rows
agreement = hosts.StopAgreement(mesh)
stops = [agreement.should_stop(step == 2 and index == count - 1) for step in range(5)]
assert stops == [False, False, False, True, False], stops
try:
    with hosts.fail_together("the test"):
        if index == 1:
            raise UserError("mine")
except UserError as error:
    other = "the test failed on host 1: see the messages of that host"
    assert str(error) == ("mine" if index == 1 else other)
else:
    raise AssertionError("the failure was not raised")
print("well")
"""


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_hosts_load_their_rows_and_agree_to_stop(root, count):
    address = f"localhost:{free_port()}"
    command = [sys.executable, "-c", PROGRAM, address, str(count)]
    processes = [
        subprocess.Popen(
            [*command, str(i)],
            cwd=root,
            env=ENVIRONMENT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(count)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0 and "well" in out, out[-3000:]


@pytest.mark.parametrize(
    "environment, cluster",
    [
        ({}, None),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, "slurm"),
        ({"SLURM_NTASKS": "4"}, None),  # the batch script, not a task of srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "ompi"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_launchers_are_detected_by_their_variables(environment, cluster):
    assert hosts.detect_cluster(environment) == cluster


@pytest.mark.parametrize(
    "given, sentence",
    [
        (("localhost:1", 2, None), "must be given together"),
        (("localhost", 2, 0), "must be HOST:PORT of process 0, not 'localhost'"),
        (("localhost:1", 0, 0), "--num_processes must be at least 1"),
        (("localhost:1", 2, 2), "--process_id must lie in [0, 2), not 2"),
    ],
)
def test_an_invalid_address_raises_one_sentence(given, sentence):
    with pytest.raises(UserError) as caught:
        hosts.address(*given)
    assert sentence in str(caught.value)

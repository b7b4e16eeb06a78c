"""SLURM jobs on a real one-node cluster on this machine, through submitit.

Tests are skipped, naming what is missing, if SLURM or submitit is not installed.
"""

import importlib
import importlib.util
import os
import pathlib
import subprocess
import tempfile
import time

import pytest
from one_node_slurm import NoSlurm, one_node_slurm

from hybridlm.errors import UserError
from launch.site import SlurmSite
from launch.slurm import SlurmLauncher
from launch.slurm_job import RunJob

# Imported before any test: its logger keeps the current stderr, and that of a test is closed later.
submitit = importlib.import_module("submitit") if importlib.util.find_spec("submitit") else None
pytestmark = pytest.mark.slow  # takes minutes on a busy machine
needs_submitit = pytest.mark.skipif(
    submitit is None, reason="no submitit: pip install 'hybridlm[launch]'"
)


@pytest.fixture(scope="module")
def cluster():
    """The path of slurm.conf. The folder has a short name, since socket paths must be short."""
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        try:
            with one_node_slurm(pathlib.Path(folder)) as conf:
                yield conf
        except NoSlurm as error:
            pytest.skip(f"SLURM: {error}")


@pytest.fixture
def slurm(cluster, stub, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(cluster))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    site = SlurmSite(partition="low", timeout_min=30, signal_delay_s=60, env={"SITE": "node"})

    def launcher(parallel=2):
        return SlurmLauncher(site, parallel)

    yield launcher
    subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], capture_output=True)
    subprocess.run(["scancel", "--me"], check=True)


def queue():
    result = subprocess.run(
        ["squeue", "--me", "--noheader", "--array", "--format=%i %T"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split() for line in result.stdout.splitlines())


def wait_for(what, holds, seconds=240):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s; the queue: {queue()}"
        time.sleep(0.1)


def trained(workdir, steps):
    """Whether the stub has saved its last step; starts requeued jobs without SLURM's delay.

    SLURM delays requeued jobs by two minutes. Within a second of revoking a job's credential the
    node refuses to start the job again and SLURM drops it, so this waits for 3 s.
    """
    saved = workdir / "saved"
    if not saved.exists():
        return False
    if time.time() - saved.stat().st_mtime > 3:
        for number, state in queue().items():
            if state == "PENDING":
                subprocess.run(
                    ["scontrol", "update", f"JobId={number}", "StartTime=now"], capture_output=True
                )
    return saved.read_text() == str(steps)


@needs_submitit
def test_an_array_of_runs_finishes_and_no_run_is_submitted_twice(
    jobs, slurm, sessions, tmp_path, capsys
):
    made = jobs(tmp_path, 0.1, 0.2, steps=40)
    assert slurm(parallel=1).submit(made, tmp_path) == 0
    assert "lr=0.1: job " in capsys.readouterr().out
    assert slurm().submit(made, tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("already job") == 2 and "submitted" not in out
    wait_for("both runs", lambda: all(trained(tmp_path / j.name, 40) for j in made))
    first, second = (sessions(tmp_path / job.name) for job in made)
    assert first[0]["SITE"] == "node" and first[1]["end"] <= second[0]["at"], "one at a time"


@needs_submitit
def test_a_preempted_run_saves_is_requeued_and_continues(jobs, slurm, sessions, tmp_path):
    """For a job of higher priority SLURM sends SIGTERM, and the run exits with 75."""
    (job,) = jobs(tmp_path, 0.1, steps=200)
    workdir = tmp_path / job.name
    slurm().submit([job], tmp_path)
    wait_for("the start", (workdir / "metrics.jsonl").exists)
    all_cpus = f"--ntasks={os.cpu_count()}"
    subprocess.run(
        ["sbatch", "--partition=high", all_cpus, "--output=/dev/null", "--wrap=sleep 2"], check=True
    )
    wait_for("the save", (workdir / "saved").exists)
    reached = int((workdir / "saved").read_text())
    assert 1 <= reached < 200
    wait_for("the end", lambda: trained(workdir, 200))
    assert [s["start"] for s in sessions(workdir) if "start" in s] == [0, reached]


@needs_submitit
def test_at_its_time_limit_a_run_saves_and_is_requeued(jobs, slurm, sessions, tmp_path):
    """Sends submitit's signal, as SLURM does before the limit; the run's process gets it too."""
    (job,) = jobs(tmp_path, 0.1, steps=100)
    workdir = tmp_path / job.name
    slurm().submit([job], tmp_path)
    wait_for("the start", (workdir / "metrics.jsonl").exists)
    (number,) = queue()
    subprocess.run(["scancel", "--signal=USR2", number], check=True)
    wait_for("the save", (workdir / "saved").exists)
    reached = int((workdir / "saved").read_text())
    wait_for("the end", lambda: trained(workdir, 100))
    assert [s["start"] for s in sessions(workdir) if "start" in s] == [0, reached]


@needs_submitit
def test_a_cancelled_run_saves_and_stays_cancelled(jobs, slurm, tmp_path):
    (job,) = jobs(tmp_path, 0.1, steps=2000)
    workdir = tmp_path / job.name
    slurm().submit([job], tmp_path)
    wait_for("the start", (workdir / "metrics.jsonl").exists)
    (number,) = queue()
    subprocess.run(["scancel", number], check=True)
    wait_for("the end", lambda: not queue())
    assert 1 <= int((workdir / "saved").read_text()) < 2000
    time.sleep(1)
    assert not queue(), "the cancelled run was requeued"


@needs_submitit
def test_a_refusal_by_slurm_raises_one_sentence(jobs, slurm, tmp_path, monkeypatch):
    launcher = SlurmLauncher(SlurmSite(partition="gpus"), 1)
    with pytest.raises(UserError, match="SLURM refused the jobs: .*partition"):
        launcher.submit(jobs(tmp_path, 0.1), tmp_path)


@pytest.mark.slow
@needs_submitit
def test_a_real_sweep(cluster, monkeypatch, in_root, tmp_path, command):
    """`hybridlm sweep --to slurm` trains all runs, and a second call submits none."""
    monkeypatch.setenv("SLURM_CONF", str(cluster))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    site = tmp_path / "site.toml"
    site.write_text('[slurm]\npartition = "low"\ntimeout_min = 30\n')
    words = [
        "sweep",
        "--config",
        "configs/sweeps/window.py:smoke",
        "--root",
        tmp_path / "runs",
        "--to",
        "slurm",
        "--site",
        site,
        "--config.train.steps=4",
        "--config.sample.tokens=0",
        "--config.data.bigram_baseline=False",
    ]
    code, out, err = command(*words)
    assert code == 0, err
    assert "submitted 3" in out
    wait_for("the sweep", lambda: not queue(), seconds=900)
    code, out, _ = command(*words)
    assert code == 0 and "nothing to do" in out


def test_a_failed_run_raises(tmp_path):
    """Calls the job of the node directly, without SLURM."""
    job = RunJob("lr=1", ["sh", "-c", "exit 2"], {}, str(tmp_path))
    with pytest.raises(Exception, match="run lr=1 ended with exit code 2"):
        job()


def test_a_missing_submitit_raises_one_sentence(monkeypatch):
    import builtins

    real = builtins.__import__

    def absent(name, *rest):
        if name == "submitit":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(
        UserError, match=r"--to slurm needs submitit: pip install 'hybridlm\[launch"
    ):
        SlurmLauncher(SlurmSite(), 1)

"""The commands and tasks for xpk and SkyPilot, also read by the tools' parsers if installed."""

import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess

import pytest
import yaml

from hybridlm.errors import UserError
from launch.site import SkySite, XpkSite
from launch.sky import SkyLauncher
from launch.xpk import XpkLauncher

XPK = XpkSite(
    cluster="v5e",
    tpu_type="v5litepod-16",
    root="/gcs/runs",
    project="lab",
    zone="us-west4-a",
    docker_image="registry/hybridlm:1",
    num_slices=2,
    env={"XLA_FLAGS": "--a=1 --b=2"},
)
SKY = SkySite(
    accelerators="tpu-v5e-8",
    root="/runs/sweep",
    file_mounts={"/runs": "gs://bucket"},
    infra="gcp",
    setup=("pip install -e '.[tpu]'", "true"),
    env={"XLA_FLAGS": "--a=1 --b=2"},
)


def tool_python(name):
    """The interpreter of a tool on PATH; skips the test if the tool is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on PATH: install it in an environment of its own")
    return str(pathlib.Path(found).parent / "python")


def test_an_xpk_command_has_run_environment_and_restarts(jobs, tmp_path):
    words = XpkLauncher(XPK).command(jobs(tmp_path, 1e-3)[0], tmp_path)
    assert words[:3] == ("xpk", "workload", "create")
    options = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
    assert options["tpu-type"] == "v5litepod-16" and options["num-slices"] == "2"
    assert options["restart-on-exit-codes"] == "75" and options["env"] == "XLA_FLAGS=--a=1 --b=2"
    assert len(options["workload"]) <= 40
    run = shlex.split(options["command"])
    assert run[:3] == ["exec", "hybridlm", "train"]
    assert run[run.index("--workdir") + 1] == "/gcs/runs/lr=0.001"
    assert "--config.optimizer.lr=0.001" in run


@pytest.mark.parametrize("root", ["gs://lab/runs", "s3://lab/runs"])
def test_runs_of_pods_may_be_in_a_bucket(jobs, tmp_path, root):
    job = jobs(tmp_path, 1e-3)[0]
    words = XpkLauncher(dataclasses.replace(XPK, root=root)).command(job, tmp_path)
    (command,) = [word for word in words if word.startswith("--command=")]
    assert f" --workdir {root}/lr=0.001 " in command
    task = SkyLauncher(dataclasses.replace(SKY, root=root, file_mounts={})).task(job, tmp_path)
    assert f" --workdir {root}/lr=0.001 " in yaml.safe_load(task)["run"]


def test_xpk_parses_the_command(jobs, tmp_path):
    python = tool_python("xpk")
    words = XpkLauncher(XPK).command(jobs(tmp_path, 1e-3)[0], tmp_path)
    read = (
        "import argparse, json, sys; from xpk.parser.core import set_parser;"
        " p = argparse.ArgumentParser(); set_parser(p); a = p.parse_args(sys.argv[1:]);"
        " print(json.dumps([a.workload, a.tpu_type, a.num_slices, a.command, a.env,"
        " a.restart_on_exit_codes, a.max_restarts, a.docker_image]))"
    )
    done = subprocess.run([python, "-c", read, *words[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, tpu, slices, command, env, codes, restarts, image = json.loads(
        done.stdout.splitlines()[-1]
    )
    assert (tpu, slices, codes, restarts) == ("v5litepod-16", 2, "75", "100")
    assert image == XPK.docker_image and env == ["XLA_FLAGS=--a=1 --b=2"]
    assert command.startswith("exec hybridlm train --config configs/demo.py:smoke")


def test_a_sky_task_has_run_environment_and_recovery(jobs, tmp_path):
    task = yaml.safe_load(SkyLauncher(SKY).task(jobs(tmp_path, 1e-3)[0], tmp_path))
    assert task["resources"]["accelerators"] == "tpu-v5e-8" and task["resources"]["use_spot"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["file_mounts"] == {"/runs": {"source": "gs://bucket", "mode": "MOUNT"}}
    assert task["envs"] == {"XLA_FLAGS": "--a=1 --b=2"}
    assert task["setup"] == "pip install -e '.[tpu]'\ntrue\n"
    run = shlex.split(task["run"])
    assert run[:3] == ["exec", "hybridlm", "train"]
    assert run[run.index("--workdir") + 1] == "/runs/sweep/lr=0.001"


def test_skypilot_parses_the_task(jobs, tmp_path):
    python = tool_python("sky")
    path = tmp_path / "task.yaml"
    path.write_text(SkyLauncher(SKY).task(jobs(tmp_path, 1e-3)[0], tmp_path))
    # Only the schema of file_mounts is checked, since the bucket does not exist.
    read = (
        "import sys, yaml; from sky import Task; from sky.utils import common_utils, schemas;"
        " config = yaml.safe_load(open(sys.argv[1]));"
        " common_utils.validate_schema(config, schemas.get_task_schema(), 'task: ');"
        " mounts = config.pop('file_mounts');"
        " [common_utils.validate_schema(m, schemas.get_storage_schema(), 'storage: ')"
        "  for m in mounts.values()];"
        " task = Task.from_yaml_config(config);"
        " print(task.name, *[r.accelerators for r in task.resources], task.envs, task.run)"
    )
    done = subprocess.run([python, "-c", read, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tpu-v5e-8" in done.stdout and "exec hybridlm train" in done.stdout


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a program on PATH that records its arguments and refuses lr=0.2."""

    def make(name):
        folder = tmp_path / "bin"
        folder.mkdir()
        script = folder / name
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$*" in *lr=0.2*) exit 3;; esac\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
        return lambda: (tmp_path / "calls").read_text().splitlines()

    return make


@pytest.mark.parametrize("name, launcher", [("xpk", XpkLauncher(XPK)), ("sky", SkyLauncher(SKY))])
def test_each_run_is_submitted_once_and_refusals_are_printed(
    jobs, tool, tmp_path, capfd, name, launcher
):
    root, calls = tmp_path / "runs", tool(name)
    root.mkdir()
    made = jobs(root, 0.1, 0.2)
    assert launcher.submit(made, root) == 1
    assert capfd.readouterr().err == f"hybridlm: {name} refused run lr=0.2 (exit code 3)\n"
    assert len(calls()) == 2
    assert launcher.submit(made, root) == 1
    assert len(calls()) == 3 and "lr=0.2" in calls()[2], "only the refused run is submitted again"
    assert f"remove it from {root / name}.json" in capfd.readouterr().out


@pytest.mark.parametrize("name, launcher", [("xpk", XpkLauncher(XPK)), ("sky", SkyLauncher(SKY))])
def test_without_the_tool_the_files_are_written(jobs, tmp_path, monkeypatch, name, launcher):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"{name} is not on this machine: .*submit.sh"):
        launcher.submit(jobs(tmp_path, 0.1, 0.2), tmp_path)
    script = (tmp_path / name / "submit.sh").read_text()
    assert script.count("# lr=") == 2
    assert len(list((tmp_path / name).glob("*.yaml"))) == (2 if name == "sky" else 0)


def test_a_damaged_record_raises_one_sentence(jobs, tool, tmp_path):
    (tmp_path / "sky.json").write_text("{")
    with pytest.raises(UserError, match="sky.json, the record of submitted runs, is damaged"):
        SkyLauncher(SKY).submit(jobs(tmp_path, 0.1), tmp_path)

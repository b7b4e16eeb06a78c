"""Jobs for the tests of launchers, with a stub program that trains nothing."""

import dataclasses
import json
import pathlib
import sys

import pytest

from hybridlm import config as configs
from hybridlm.sweep import PlannedRun, RunProgress, SweepRun
from launch.job import Job

STUB = pathlib.Path(__file__).parent / "stub_run.py"


@pytest.fixture
def jobs(in_root):
    """Makes jobs with the given learning rates, each of `steps` steps of 50 ms."""
    config = configs.load("configs/demo.py:smoke")

    def make(root, *rates, steps=4):
        settings = dataclasses.replace(config.train, steps=steps)
        made = []
        for rate in rates:
            pairs = (("train.steps", str(steps)), ("optimizer.lr", repr(rate)))
            run = SweepRun(f"lr={rate}", pairs, (), dataclasses.replace(config, train=settings))
            planned = PlannedRun(run, root / run.name, 1, 1, 1.0, RunProgress("new"))
            made.append(Job(planned, "configs/demo.py:smoke"))
        return made

    return make


@pytest.fixture
def stub(monkeypatch):
    """Makes the local and SLURM launchers start the stub."""
    for module in ("launch.local", "launch.slurm"):
        monkeypatch.setattr(f"{module}.PROGRAM", (sys.executable, str(STUB)))


@pytest.fixture
def sessions():
    """Reads the starts and ends that the stub recorded in a workdir."""

    def read(workdir):
        path = workdir / "sessions"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read

"""The sweep of docs/sweeps.md is interrupted and continued."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from hybridlm.runs import checkpoint, metrics


@pytest.fixture
def place(tmp_path, root, monkeypatch):
    """A folder with the checkout's configs, data and docs, in which its programs can run."""
    for name in ("configs", "data", "docs"):
        (tmp_path / name).symlink_to(root / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{root}:{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


@pytest.fixture
def page(page_commands):
    """The page's commands, as words."""
    found = page_commands("sweeps.md")
    assert len(found) == 6
    return found


@pytest.mark.slow
def test_the_sweep_of_the_page_is_interrupted_and_continued(place, page, command, refusal):
    """With real runs; `test_local.py` does the same with stubs and is never skipped."""
    (words,) = [words for words in page if "--parallel" in words]
    runs = place / "runs" / "smoke"

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "hybridlm.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start()
    deadline = time.monotonic() + 600
    while first.poll() is None and time.monotonic() < deadline:
        if any(path.stat().st_size for path in runs.glob("*/metrics.jsonl")):
            first.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    out, err = first.communicate(timeout=600)
    assert first.returncode == 75, out + err
    progress = re.compile(r"loading jax and hybridlm(: \d+s| \.\.\.)")  # of a slow machine
    assert "SIGINT received: the runs save and stop" in out
    assert all(progress.fullmatch(line) for line in err.splitlines()), err
    assert not (runs / "swa.window=256").exists(), "the waiting run must not start"

    second = start()
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, out + err
    for window in (16, 64, 256):
        workdir = runs / f"swa.window={window}"
        assert checkpoint.steps(workdir)[-1] == 6 and (workdir / "report.html").exists()
        steps = [r["step"] for r in metrics.read(workdir / metrics.FILE) if r["kind"] == "train"]
        assert steps == [2, 4, 6]
        config = json.loads((workdir / "config.json").read_text())
        assert config["model"]["mixers"]["swa"]["window"] == window
        assert f"swa.window={window}: finished" in out or f"swa.window={window}  finished" in out
        assert not (workdir / "tokens").exists(), "the runs must share their tokens"
    assert len(list((runs / "tokens").iterdir())) == 1

    code, out, _ = command(*words)
    assert code == 0 and "nothing to do" in out
    assert out.count("finished, ") == 3 and out.count("nats held out") == 3
    message = refusal(*words, "--config.data.seq_len=32")
    assert message.startswith("hybridlm: run swa.window=16: ")
    assert "data.seq_len 64 -> 32" in message

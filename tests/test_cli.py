"""The command line on a tiny run: output, refusals and exit codes."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.xdist_group("cli")  # one run for all tests


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """A finished smoke run of the demo."""
    workdir = tmp_path_factory.mktemp("cli") / "run"
    root = request.config.rootpath
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hybridlm.cli",
            "train",
            "--config",
            "configs/demo.py:smoke",
            "--workdir",
            str(workdir),
        ],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_run_prints_its_progress_and_results(run):
    workdir, out = run
    said = "nats bits/byte tokens/s ETA".split()
    said += ["held-out at step 8", "sample:", "read of addresses: "]
    for text in said:
        assert text in out, text
    assert "a bigram model of the same corpus has" in out
    assert out.rstrip().splitlines()[-1] == f"report: {workdir / 'report.html'}"


def test_a_run_writes_its_files(run):
    workdir, _ = run
    for name in ("config.json", "environment.json", "metrics.jsonl", "report.html", "checkpoints"):
        assert (workdir / name).exists(), name
    assert list((workdir / "tensorboard").iterdir())
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in records} == {"run", "train", "eval", "sample"}
    train = next(r for r in records if r["kind"] == "train")
    for key in ("tokens_per_second", "step_seconds_p90", "data_wait_share", "memory_bytes"):
        assert key in train
    assert not any("mfu" in key for record in records for key in record), "a CPU has no known peak"


def test_a_run_writes_no_pickles(run):
    workdir, _ = run
    for path in workdir.rglob("*"):
        if path.is_file():
            assert path.suffix not in (".pkl", ".pickle", ".npy"), path
            assert not path.read_bytes()[:2] == b"\x80\x04", path


def test_inspect_prints_state_and_hashes(run, command):
    code, out, _ = command("inspect", run[0])
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert code == 0
    assert lines["steps"] == "8 of 8" and lines["checkpoints"] == "4 8"
    assert len(lines["parameters_sha256"]) == 64
    assert lines["read of addresses"].endswith(" sequences")  # all of one source: no share
    assert command("inspect", run[0])[1] == out
    earlier = command("inspect", run[0], "--step", 4)[1]
    assert lines["parameters_sha256"] not in earlier


def test_generate_continues_the_prompt(run, command):
    words = ["generate", "--workdir", run[0], "--prompt", "We, ", "--tokens", 12]
    code, out, _ = command(*words, "--seed", 3)
    assert code == 0 and out.startswith("We, ")
    assert command(*words, "--seed", 3)[1] == out


REFUSED = [
    (["inspect", "{none}"], "is not a folder"),
    (["inspect", "x" * 300], "xxx/config.json: File name too long"),
    (["inspect", "{empty}"], "is no run: it has no config.json"),
    (["inspect", "{run}", "--step", "5"], "holds no checkpoint of step 5: it has 4, 8"),
    (["generate", "--workdir", "{empty}"], "is no run: it has no config.json"),
    (["generate", "--workdir", "{run}", "--tokens", "0"], "--tokens must be at least 1"),
    (
        ["generate", "--workdir", "{run}", "--tokens", "2000000000"],
        "at most 1,000,000, not 2000000",
    ),
    (["generate", "--workdir", "{run}", "--top_p", "nan"], "--top_p must be a finite number"),
    (["report", "--workdir", "{none}"], "is not a folder"),
    (["report", "--workdir", "{run}", "--color"], "unknown argument '--color'"),
    (["trian"], "unknown command 'trian': did you mean 'train'?"),
    (["--verbose"], "unknown argument '--verbose'"),
    (["train", "--dry_run"], "the following arguments are required: --config"),
    (["train", "--config", "configs/demo.py", "--dry-run"], "did you mean '--dry_run'?"),
    (
        ["generate", "--workdir", "{run}", "--temperature", "hot"],
        "--temperature must be a number, not 'hot'",
    ),
    (["inspect"], "the following arguments are required: WORKDIR"),
    (["train", "--config", "configs/demo.py:smoke", "--workdir", ""], "a path is empty"),
    (
        ["train", "--config", "configs/demo.py:smoke", "--workdir", "{run}/config.json"],
        "config.json is a file: name a folder",
    ),
    (["train", "--config", "configs/demo.py"], "train needs --workdir"),
    (["train", "--config", "configs/demo.py", "--dry_run", "--config.seed"], "has no value"),
    (["train", "--config", "configs/demo.py", "--dry_run", "now"], "unknown argument 'now'"),
    (["train", "--config", "configs/dem.py", "--dry_run"], "did you mean 'demo.py'?"),
    (
        ["train", "--config", "configs/demo.py:smoke", "--workdir", "{run}", "--config.seed=1"],
        "holds a run of another config (seed 0 -> 1): use another --workdir",
    ),
    (
        ["train", "--config", "configs/demo.py:smoke", "--workdir", "/proc/none"],
        "--workdir /proc/none cannot be written",
    ),
    (
        [
            "train",
            "--config",
            "configs/demo.py:smoke",
            "--workdir",
            "{new}",
            "--config.data.sources.addresses.path=gone.jsonl",
        ],
        "gone.jsonl",
    ),
    (["tokenize", "--source", "gone.txt", "--out", "{new}"], "gone.txt"),
    (["tokenize", "--source", "x", "--kind", "csv", "--out", "{new}"], "--kind is 'csv'"),
    (
        ["tokenize", "--source", "x", "--tokenizer", "bpe", "--out", "{new}"],
        "--tokenizer is 'bpe'",
    ),
]


@pytest.mark.parametrize("words, sentence", REFUSED, ids=[" ".join(w)[:90] for w, _ in REFUSED])
def test_an_impossible_command_is_refused_in_one_sentence(
    run, in_root, tmp_path, refusal, words, sentence
):
    (tmp_path / "empty").mkdir()
    places = dict(
        run=run[0], none=tmp_path / "none", empty=tmp_path / "empty", new=tmp_path / "new"
    )
    assert sentence in refusal(*(w.format(**places) for w in words))


def test_a_workdir_that_another_process_uses_is_refused(run, root):
    import fcntl

    with open(run[0] / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "hybridlm.cli",
                "train",
                "--config",
                "configs/demo.py:smoke",
                "--workdir",
                str(run[0]),
            ],
            cwd=root,
            capture_output=True,
            text=True,
            env=dict(os.environ),
        )
    assert done.returncode == 2
    assert done.stderr.endswith(f"another process is training in {run[0]}\n")


def test_a_diverging_run_ends_with_one_sentence(root, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hybridlm.cli",
            "train",
            "--config",
            "configs/demo.py:smoke",
            "--workdir",
            str(tmp_path / "run"),
            "--config.train.abort_after=3",
            "--config.optimizer.lr=1e30",
            "--config.optimizer.schedule='constant'",
            "--config.data.bigram_baseline=False",
        ],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("hybridlm: "))
    assert "3 updates in a row were skipped" in said and "the run has diverged" in said
    assert done.stderr.endswith(f"{said}\n") and "Traceback" not in done.stderr


def test_without_a_command_help_is_printed(command):
    code, out, _ = command()
    assert code == 2 and "train" in out and "generate" in out


def test_a_failed_start_does_not_claim_the_workdir(in_root, tmp_path, refusal):
    """After a mistake in the data, a corrected config may use the same workdir."""
    words = ["train", "--config", "configs/demo.py:smoke", "--workdir", tmp_path / "run"]
    bad = "--config.data.sources.addresses.path=gone.jsonl"
    refusal(*words, bad)
    err = refusal(*words, "--config.train.wandb=x", "--config.train.tensorboard=False")
    assert "pip install 'hybridlm[wandb]'" in err and "another config" not in err

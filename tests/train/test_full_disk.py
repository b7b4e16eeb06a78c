"""On a disk that is full a run ends with one sentence, keeps what it wrote, and resumes."""

import math
import subprocess
import sys

import numpy as np
import pytest

from hybridlm import config as configs
from hybridlm.commands.full_run import full_run
from hybridlm.errors import UserError
from hybridlm.runs import checkpoint, metrics
from hybridlm.train import setup
from tests.train import recurrent

pytestmark = pytest.mark.xdist_group("full_disk")  # one run for all tests
STEPS = 24


def settings_of(folder):
    settings = recurrent.settings_of(
        folder,
        data=dict(token_cache=str(folder / "tokens")),
        train=dict(steps=STEPS, eval_every=8, checkpoint_every=8, keep_checkpoints=1),
    )
    return settings | dict(sample=dict(tokens=4))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with text, its tokens, and `run`, which never met a full disk."""
    folder = tmp_path_factory.mktemp("full_disk")
    recurrent.write_text(folder)
    assert full_run(load(folder), folder / "run") == 0
    return folder


def load(folder):
    return setup.resolve(configs.read(settings_of(folder)))[0]


def told(path):
    """Of each record what does not depend on time."""
    names = ("kind", "step", "loss", "grad_norm", "learning_rate", "text", "bits_per_byte")
    return [[record.get(name) for name in names] for record in metrics.read(path / metrics.FILE)]


def check_kept(path, whole):
    """What was written before the disk was full is there, and is what the whole run wrote."""
    found = told(path)
    assert found == told(whole / "run")[: len(found)]
    for step in checkpoint.steps(path):
        assert checkpoint.verify(path, step) is not None
    return len(found), checkpoint.steps(path)


def check_resumes(path, whole):
    assert full_run(load(whole), path) == 0
    assert told(path) == told(whole / "run")
    ends = [checkpoint.load_numpy(run)[1] for run in (path, whole / "run")]
    assert checkpoint.digest(ends[0]) == checkpoint.digest(ends[1])
    assert (path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["anywhere", "before the first checkpoint", "after a checkpoint"])
def test_a_run_on_a_disk_of_any_size_ends_in_one_sentence_and_resumes(whole, small_disk, place):
    """A disk of its own that the kernel lets no more than that many bytes into."""
    sizes = [p.stat().st_size for p in (whole / "run").rglob("*") if p.is_file()]
    needed = sum(math.ceil(size / 4096) * 4 for size in sizes)  # KiB
    rng = np.random.default_rng()
    draws = {
        "anywhere": rng.integers(8, needed),
        "before the first checkpoint": rng.choice([8, 12]),
        "after a checkpoint": rng.integers(needed // 2, needed),
    }
    path, size = small_disk.path / "run", int(draws[place])
    small_disk.resize(size)
    with pytest.raises(UserError, match=r"cannot be written( to |: )") as caught:
        full_run(load(whole), path)
    sentence = str(caught.value)
    assert str(small_disk.path) in sentence and "\n" not in sentence, (size, sentence)
    assert "No space left on device" in sentence, (size, sentence)
    assert place != "before the first checkpoint" or str(path / metrics.FILE) in sentence
    print(f"{size} of {needed} KiB: {sentence}; kept {check_kept(path, whole)}")
    small_disk.resize(64 * 1024)
    check_resumes(path, whole)


@pytest.mark.slow
def test_a_process_whose_files_may_not_grow_ends_in_one_sentence_and_resumes(whole, tmp_path, root):
    """RLIMIT_FSIZE of 8 KiB, which metrics.jsonl reaches before the first checkpoint."""
    path, recipe = tmp_path / "run", tmp_path / "recipe.py"
    recipe.write_text(
        "from ml_collections import ConfigDict\n"
        f"get_config = lambda arg='': ConfigDict({settings_of(whole)!r})\n"
    )
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 8 && exec "$@"', "-", sys.executable, "-m", "hybridlm.cli"]
        + ["train", "--config", recipe, "--workdir", path]
        + [f"--config.train.checkpoint_every={STEPS}"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    sentence = done.stderr.splitlines()[-1]
    assert sentence == f"hybridlm: {path / metrics.FILE} cannot be written: File too large"
    assert "Traceback" not in done.stderr
    count, steps = check_kept(path, whole)
    assert count > 3 and not steps
    check_resumes(path, whole)

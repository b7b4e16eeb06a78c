"""Damaged or replaced files of a workdir: the error names them, and no older checkpoint is used."""

import json
import re
import resource
import shutil
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from hybridlm import config as configs
from hybridlm.data import train_bpe
from hybridlm.errors import TRY_AGAIN, UserError
from hybridlm.runs import checkpoint, integrity, metrics, open_model
from hybridlm.train.loop import NoCallback, train
from tests.train import recurrent

pytestmark = pytest.mark.xdist_group("damage")  # one run for all tests
TEXTS = [f"Document {i} tells of the year {1790 + i} and of what came then." * 4 for i in range(40)]


def load(folder):
    """The config of a run of seconds, with its text and tokenizer in `folder`."""
    settings = recurrent.settings_of(
        folder,
        data=dict(tokenizer=dict(kind="hf", path=str(folder / "tokenizer.json"))),
        train=dict(steps=4, eval_every=4, checkpoint_every=2),
    )
    return configs.read(settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with text, a tokenizer, and `run`, a completed run on them."""
    folder = tmp_path_factory.mktemp("damage")
    recurrent.write_text(folder, TEXTS)
    train_bpe(TEXTS, 270, folder / "tokenizer.json")
    assert train(load(folder), folder / "run") == 0
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of `whole` whose run has only its first checkpoint."""
    shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "run" / "checkpoints" / "4")
    config = tmp_path / "copy" / "run" / "config.json"
    config.write_text(config.read_text().replace(str(whole), str(tmp_path / "copy")))
    return tmp_path / "copy"


def truncate(step):
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def drop_metadata(step):
    for path in step.rglob("*METADATA*"):
        path.unlink()


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


@pytest.mark.parametrize("damage", [truncate, drop_metadata, empty])
def test_a_damaged_checkpoint_is_an_error(whole, folder, damage):
    shutil.copytree(whole / "run" / "checkpoints" / "4", folder / "run" / "checkpoints" / "4")
    damage(folder / "run" / "checkpoints" / "4")
    with pytest.raises(UserError, match="checkpoints/4 cannot be read .*copy it again, or remov"):
        open_model(folder / "run")


def test_inspect_verifies_all_checkpoints(whole, folder, command, refusal):
    """After one bit of step 4 has flipped it names the array, and says that step 2 is whole."""
    run = folder / "run"
    shutil.copytree(whole / "run" / "checkpoints" / "4", run / "checkpoints" / "4")
    code, said, _ = command("inspect", run, "--verify")
    arrays = integrity.checksum.named(checkpoint.load_numpy(run)[1])
    assert code == 0 and said.count(f": {len(arrays)} arrays as saved\n") == 2
    data = max((run / "checkpoints" / "4").rglob("d/*"), key=lambda path: path.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(bytes(raw))
    said = refusal("inspect", run, "--verify")
    name = re.search(r"checkpoints/4 cannot be read \((\S+) ", said).group(1)
    assert name in arrays and f"verified_2: {len(arrays)} arrays as saved" in said
    assert name in refusal("inspect", run, "--verify", "--step", "4")
    assert command("inspect", run, "--verify", "--step", "2")[0] == 0
    with pytest.raises(UserError, match=f"{name} "):
        train(load(folder), run)


def test_a_run_resumes_once_its_damaged_checkpoint_is_removed(whole, folder):
    step = folder / "run" / "checkpoints" / "4"
    shutil.copytree(whole / "run" / "checkpoints" / "4", step)
    truncate(step)
    with pytest.raises(UserError, match="checkpoints/4 cannot be read"):
        train(load(folder), folder / "run")
    shutil.rmtree(step)  # as the error says
    assert train(load(folder), folder / "run") == 0
    ends = [checkpoint.load_numpy(f / "run")[1] for f in (whole, folder)]
    assert checkpoint.digest(ends[0]) == checkpoint.digest(ends[1])


def test_a_checkpoint_that_cannot_be_written_ends_the_run(whole, folder):
    """A limit on file size stops the save; without the limit the run resumes."""
    sizes = [p.stat().st_size for p in (whole / "run" / "checkpoints").rglob("*") if p.is_file()]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) // 2, hard))
    try:
        with pytest.raises(
            UserError, match="cannot be written to .*too large.*: that of step 2 is the newest"
        ):
            train(load(folder), folder / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert train(load(folder), folder / "run") == 0
    ends = [checkpoint.load_numpy(f / "run")[1] for f in (whole, folder)]
    assert checkpoint.digest(ends[0]) == checkpoint.digest(ends[1])


class SlowSteps(NoCallback):
    """Remembers the last step, and makes each step from the 10th last 0.1 s."""

    last = 0

    def due(self, step):
        return step >= 10

    def on_step(self, step, params):
        self.last = step
        time.sleep(0.1)
        return f"step {step}"


def test_a_save_that_fails_in_the_background_ends_the_run_at_the_next_step(
    whole, tmp_path, full_disk
):
    """Not at the next save, before which the run would train for nothing."""
    settings = configs.to_dict(load(whole))
    settings["train"] |= dict(steps=60, checkpoint_every=10, eval_every=60, log_every=60)
    config = configs.read(settings)
    sizes = [p.stat().st_size for p in (whole / "run" / "checkpoints").rglob("*") if p.is_file()]
    with full_disk(max(sizes) // 2):
        callback = SlowSteps()
        said = "a checkpoint cannot be written to .*: there is none yet; .* the same command begins"
        with pytest.raises(UserError, match=said):
            train(config, tmp_path / "run", callback=callback)
    assert 10 <= callback.last < 18, "the next save is at step 20"


def other_text(folder):
    with (folder / "a.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")


def other_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    train_bpe([text[::-1] for text in TEXTS], 270, folder / "tokenizer.json")


@pytest.mark.parametrize("change", [other_text, other_tokenizer])
def test_a_run_does_not_resume_with_other_data(folder, change):
    change(folder)
    with pytest.raises(
        UserError, match=r"of data\.sources\.a are not those that the run in .* began"
    ):
        train(load(folder), folder / "run")


def test_a_model_does_not_open_with_another_tokenizer(folder):
    open_model(folder / "run")
    other_tokenizer(folder)
    with pytest.raises(
        UserError, match=r"tokenizer\.json is not the one that the run in .* was tra"
    ):
        open_model(folder / "run")


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl"])
def test_a_damaged_file_is_named_on_resume(folder, name):
    path = folder / "run" / name
    path.write_text("{" + path.read_text())
    with pytest.raises(UserError, match=f"{name} is damaged"):
        train(load(folder), folder / "run")


def test_a_run_without_a_checkpoint_drops_its_old_records(tmp_path):
    """They are from a start that may have read other data."""
    path = tmp_path / metrics.FILE
    path.write_text('{"kind": "run", "step": 0}\n{"kind": "train", "step": 3}\n')
    metrics.cut_back(path, 0)
    assert metrics.read(path) == []


def test_a_signal_in_an_evaluation_stops_the_next_step(whole, tmp_path, monkeypatch):
    """The next step saves a checkpoint, so no step is lost."""
    from hybridlm.train import loop, preemption

    stops = []
    plain_enter = preemption.StopSignal.__enter__
    monkeypatch.setattr(
        preemption.StopSignal, "__enter__", lambda s: stops.append(s) or plain_enter(s)
    )

    def evaluate_and_signal(*arguments):
        stops[0].received = "SIGTERM"
        return plain_evaluate(*arguments)

    plain_evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", evaluate_and_signal)
    config = load(whole)
    frequent = configs.to_dict(config)
    frequent["train"] |= dict(eval_every=1, checkpoint_every=4)
    assert train(configs.read(frequent), tmp_path / "run") == TRY_AGAIN
    assert checkpoint.steps(tmp_path / "run") == [2]


def test_evaluation_batches_are_sharded(whole):
    """Each device evaluates its own rows."""
    from hybridlm.parallel.axes import AXES
    from hybridlm.parallel.mesh import sharding

    mesh = Mesh(np.array(jax.devices()[:1]).reshape((1,) * len(AXES)), AXES)
    assert sharding(mesh, ("batch", "time")).spec == jax.P(("data", "fsdp", "expert"), ("context",))

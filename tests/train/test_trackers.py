"""A run at Weights & Biases begins before the step is compiled, or is refused in one sentence."""

import json
import sys
from types import SimpleNamespace

import pytest

from hybridlm import config as configs
from hybridlm.errors import UserError
from hybridlm.runs import workdir
from hybridlm.train import loop, setup
from tests.train import recurrent


@pytest.fixture
def config(tmp_path):
    recurrent.write_text(tmp_path)
    return configs.read(recurrent.settings_of(tmp_path, train=dict(steps=2, wandb="project")))


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb: `began` has the arguments of each `init`, `logged` the steps,
    `ended` the exit codes."""
    module = SimpleNamespace(began=[], logged=[], ended=[])

    def log(values, step):
        module.logged.append(step)

    def finish(exit_code=None):
        module.ended.append(exit_code)

    def init(**settings):
        module.began.append(settings)
        return SimpleNamespace(log=log, finish=finish)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_refusal_comes_before_compiling_and_leaves_the_folder_free(
    config, wandb, tmp_path, monkeypatch
):
    def init(**settings):
        raise RuntimeError("api_key not configured (no-tty).\ncall wandb.login")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(setup, "lower_step", lambda *_: pytest.fail("the step is compiled"))
    with pytest.raises(UserError) as caught:
        loop.train(config, tmp_path / "run")
    said = str(caught.value)
    assert said.startswith("train.wandb 'project' cannot begin a run at Weights & Biases (api_key ")
    assert "`wandb login`" in said and "\n" not in said
    assert not (tmp_path / "run" / workdir.CONFIG).exists()


def test_nothing_begins_there_if_the_data_are_refused(config, wandb, tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="there is no key 'text'"):
        loop.train(config, tmp_path / "run")
    assert not wandb.began


def test_a_run_has_one_id_at_all_its_starts(config, wandb, tmp_path):
    for _ in range(2):  # the second start has nothing left to do
        assert loop.train(config, tmp_path / "run") == 0
    first, second = wandb.began
    environment = json.loads((tmp_path / "run" / workdir.ENVIRONMENT).read_text())
    assert first["id"] == second["id"] == environment["id"]
    assert (first["project"], first["name"], first["resume"]) == ("project", "run", "allow")
    assert {1, 2} <= set(wandb.logged) and wandb.ended == [None, None]


def test_a_start_that_fails_ends_the_run_as_failed_and_the_next_goes_on_with_it(
    config, wandb, tmp_path, monkeypatch
):
    path = tmp_path / "run"

    def refuse(*_):
        raise UserError("out of memory")

    for module, name in ((setup, "build"), (setup, "build"), (loop, "_begin")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            with pytest.raises(UserError, match="out of memory"):
                loop.train(config, path)
        assert not (path / workdir.CONFIG).exists() and not (path / workdir.ENVIRONMENT).exists()
    assert loop.train(config, path) == 0
    environment = json.loads((path / workdir.ENVIRONMENT).read_text())
    assert {began["id"] for began in wandb.began} == {environment["id"]}
    assert len(wandb.began) == 4 and wandb.ended == [1, 1, 1, None]
    assert not (path / workdir.ID).exists()


def test_a_damaged_file_of_the_id_is_replaced(tmp_path):
    folder = workdir.Workdir(tmp_path, None)
    (tmp_path / workdir.ID).write_bytes(b"\xff/")
    assert folder.keep_id().encode() == (tmp_path / workdir.ID).read_bytes()
    assert workdir.run_id(tmp_path) == folder.run_id

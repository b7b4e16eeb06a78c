"""A branch at step N that decays over M steps is one "wsd" run of N + M steps, bit for bit."""

import shutil

import pytest

from hybridlm.config.branch import branch
from hybridlm.errors import UserError
from hybridlm.train.loop import train
from hybridlm.train.optimizer import learning_rate
from tests.train.stages import config, drawn_run
from tests.train.test_schedule import MODEL, records, state_digest

BASES = {
    "constant": dict(schedule="constant"),
    "wsd": dict(schedule="wsd", decay_steps=1),
    "muon": dict(schedule="constant", name="muon", muon_lr=1e-2, warmup_steps=2),
    "adafactor": dict(schedule="constant", name="adafactor"),
}
AT, DECAY = 4, 3


@pytest.mark.parametrize(
    "base", ["constant", *(pytest.param(b, marks=pytest.mark.slow) for b in list(BASES)[1:])]
)
def test_a_branch_has_the_bits_of_a_run_that_was_to_decay(base, tmp_path, in_root):
    """The loss curve from step N on, the parameters, the optimizer's state and the average."""
    data = dict(token_cache=str(tmp_path / "tokens"))
    others = dict(checkpoint_every=2, keep_checkpoints=9, ema_decay=0.9, spike_sigma=9.0)

    def settings(optimizer, steps):
        return config(MODEL, data=data, optimizer=optimizer, steps=steps, **others)

    whole, path, found = tmp_path / "whole", tmp_path / "base", tmp_path / "branch"
    wsd = {**BASES[base], "schedule": "wsd", "decay_steps": DECAY}
    assert train(settings(wsd, AT + DECAY), whole) == 0
    assert train(settings(BASES[base], AT + 1), path) == 0
    assert train(branch(path, DECAY, AT), found) == 0
    assert state_digest(found) == state_digest(whole)
    later = [r for r in records(whole) if r["step"] > AT]
    assert records(found) == later and later


@pytest.mark.slow
def test_the_command_of_a_branch_resumes_it_when_its_base_is_gone(tmp_path, in_root, command):
    path, found = tmp_path / "base", tmp_path / "branch"
    drawn_run(path, config(MODEL), AT)
    words = ("branch", path, "--decay", DECAY, "--workdir", found, "--config.optimizer.lr=1e-3")
    code, said, _ = command(*words)
    assert (
        code == 0 and f"branch of {path} at step {AT}: the learning rate decays from 0.001" in said
    )
    whole = state_digest(found)
    shutil.rmtree(path)
    shutil.rmtree(found / "checkpoints" / str(AT + DECAY))
    assert command(*words)[0] == 0
    assert state_digest(found) == whole
    train_steps = [r["step"] for r in records(found) if r["kind"] == "train"]
    assert train_steps == list(range(AT + 1, AT + DECAY + 1))


@pytest.mark.parametrize(
    "schedule, step, share", [("cosine", 8, 0.55), ("linear", 8, 0.55), ("wsd", 13, 0.55)]
)
def test_a_branch_goes_on_at_the_rate_that_its_base_had(schedule, step, share, tmp_path):
    decay = 6 if schedule == "wsd" else None
    optimizer = dict(schedule=schedule, decay_steps=decay, muon_lr=1e-2, name="muon")
    drawn_run(tmp_path / "run", config(MODEL, optimizer=optimizer, steps=16), step)
    found = branch(tmp_path / "run", 4)
    assert found.optimizer.lr == pytest.approx(share * 3e-3)
    assert found.optimizer.muon_lr == pytest.approx(share * 1e-2)
    assert (found.optimizer.schedule, found.optimizer.decay_steps) == ("wsd", 4)
    assert found.train.steps == step + 4
    last = learning_rate(found.optimizer, found.train.steps, found.train.steps - 1)
    assert float(last) == pytest.approx(0.1 * share * 3e-3), "final_lr_fraction of what it was"
    assert (found.init.path, found.init.step) == (str(tmp_path / "run"), step)


def test_settings_of_a_branch_may_differ_from_its_base(tmp_path, in_root, command):
    drawn_run(tmp_path / "run", config(MODEL), 4)
    found = branch(
        tmp_path / "run", 4, overrides=[("optimizer.lr", "1e-4"), ("data.seq_len", "64")]
    )
    assert (found.optimizer.lr, found.data.seq_len) == (1e-4, 64)
    code, said, _ = command("branch", tmp_path / "run", "--decay", 4, "--dry_run")
    assert code == 0 and f"begins from {tmp_path / 'run'} at step 4" in said
    assert "the learning rate decays from 0.003 to 0.0003 over 4 steps" in said


def test_a_branch_that_cannot_begin_is_refused(tmp_path):
    optimizer = dict(schedule="linear", warmup_steps=5, final_lr_fraction=0.0)
    run = tmp_path / "run"
    drawn_run(run, config(MODEL, optimizer=optimizer), 4)
    for path, step, message in (
        (tmp_path, None, "is no run"),
        (run, 3, "holds no checkpoint of step 3: it has 4"),
        (run, None, "--step 4 lies in the warm-up .* of 5 steps"),
    ):
        with pytest.raises(UserError, match=message):
            branch(path, 4, step)
    with pytest.raises(UserError, match="holds a run that is no branch: name another folder"):
        branch(run, 4, workdir=run)
    drawn_run(tmp_path / "ended", config(MODEL, optimizer={**optimizer, "warmup_steps": 0}), 6)
    with pytest.raises(UserError, match="is 0 at step 6, so it cannot decay"):
        branch(tmp_path / "ended", 4)

"""A checkpoint is begun before its step is evaluated and probed; a run that ends in between makes
up for it.
"""

import json
import multiprocessing
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm import config as configs
from hybridlm.errors import TRY_AGAIN, RunError
from hybridlm.runs import checkpoint, metrics
from hybridlm.train import loop
from hybridlm.train.live_probes import LiveProbes

pytestmark = pytest.mark.xdist_group("save_first")  # all tests share an uninterrupted run
SAME = ("kind", "step", "loss", "bits_per_byte", "grad_norm", "learning_rate", "sum")


class Killed(BaseException):
    """Ends a run as a kill does: nothing after it is computed or recorded."""


class Probe(LiveProbes):
    """Two records a step in `probes.jsonl`, kept and dropped as those of the live probes are."""

    def __init__(self, between=lambda step: None, interval=2):
        self.between, self.interval = between, interval

    def due(self, step):
        return step % self.interval == 0

    def on_step(self, step, params):
        total = float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(params)))
        self.writer.write({"kind": "weights", "step": step, "sum": total})
        self.between(step)
        self.writer.write({"kind": "cost", "step": step})
        self.writer.flush()
        return f"probed step {step}"


def load(folder, **train):
    settings = dict(
        model=dict(
            width=8,
            depth=1,
            pattern="rec",
            mixers=dict(rec=dict(kind="rglru", heads=1)),
            mlp=dict(hidden=8),
        ),
        data=dict(
            sources=dict(a=dict(kind="jsonl", path=str(folder / "a.jsonl"))),
            seq_len=16,
            batch_size=2,
            token_cache=str(folder / "tokens"),
            bigram_baseline=False,
        ),
        optimizer=dict(lr=0.01),
        train=dict(
            steps=4,
            log_every=1,
            eval_every=2,
            checkpoint_every=2,
            eval_sequences=2,
            tensorboard=False,
        )
        | train,
    )
    return configs.read(settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with text, and `run`, an uninterrupted run on it."""
    folder = tmp_path_factory.mktemp("save_first")
    lines = [json.dumps({"text": f"Document {i} tells of the year {i}."}) for i in range(400)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    assert loop.train(load(folder), folder / "run", callback=Probe()) == 0
    return folder


def outcome(run):
    """What two equal runs have in common: records but for times, in order, and the last state."""
    found = [
        [{key: r[key] for key in SAME if key in r} for r in metrics.read(run / name)]
        for name in ("metrics.jsonl", "probes.jsonl")
    ]
    return found, checkpoint.digest(checkpoint.load_numpy(run)[1])


def wait_for(run, step):
    """Until the checkpoint of `step` is complete."""
    end = time.monotonic() + 60
    while step not in checkpoint.steps(run):
        assert time.monotonic() < end, "the checkpoint was not begun before this"
        time.sleep(0.01)


def killing(run, step):
    """Ends the run after the checkpoint of `step`, when it is called for that step."""

    def kill(at):
        if at == step:
            wait_for(run, step)
            raise Killed

    return kill


def kill_in_evaluation(monkeypatch, run, step):
    """The evaluation after `step` begins, and does not end."""
    plain, count = loop.evaluate, iter(range(2, 100, 2))

    def evaluate(*arguments):
        killing(run, step)(next(count))
        return plain(*arguments)

    monkeypatch.setattr(loop, "evaluate", evaluate)


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_an_evaluation_that_a_kill_prevented_is_made_up(whole, tmp_path, monkeypatch, step):
    """Of the last step, too, where nothing else is left to do."""
    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_in_evaluation(patched, run, step)
        loop.train(load(whole), run, callback=Probe())
    assert checkpoint.steps(run)[-1] == step
    assert not any(
        (r["kind"], r["step"]) == ("eval", step) for r in metrics.read(run / metrics.FILE)
    )
    assert loop.train(load(whole), run, callback=Probe()) == 0
    assert outcome(run) == outcome(whole / "run")


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4])
def test_probes_that_a_kill_cut_short_are_made_up(whole, tmp_path, step):
    """Their first record is on disk, the last is not: all of that step are written again."""
    run = tmp_path / "run"
    with pytest.raises(Killed):
        loop.train(load(whole), run, callback=Probe(killing(run, step)))
    assert metrics.read(run / "probes.jsonl")[-1]["kind"] == "weights"
    assert loop.train(load(whole), run, callback=Probe()) == 0
    assert outcome(run) == outcome(whole / "run")


def killed_run(whole, run, step, in_evaluation):
    """Trains in `run` until SIGKILL ends the process, after the checkpoint of `step`."""

    def kill(at):
        if at == step:
            wait_for(run, step)
            os.kill(os.getpid(), signal.SIGKILL)

    if in_evaluation:
        plain, count = loop.evaluate, iter(range(2, 100, 2))
        loop.evaluate = lambda *arguments: kill(next(count)) or plain(*arguments)
    loop.train(load(whole), run, callback=Probe() if in_evaluation else Probe(kill))


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize("in_evaluation", [True, False])
def test_a_process_killed_between_a_checkpoint_and_its_figures(
    whole, tmp_path, step, in_evaluation
):
    run = tmp_path / "run"
    arguments = (whole, run, step, in_evaluation)
    process = multiprocessing.get_context("spawn").Process(target=killed_run, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and checkpoint.steps(run)[-1] == step
    assert loop.train(load(whole), run, callback=Probe()) == 0
    assert outcome(run) == outcome(whole / "run")


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_signal_saves_at_once_and_the_next_start_measures(whole, tmp_path, step):
    """With 75 even where no step is left, so that a launcher starts it again."""
    run = tmp_path / "run"

    def signalled(at):
        if at == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    class Signal(Probe):
        def due(self, step):
            return True

        def on_step(self, step, params):
            signalled(step)
            return super().on_step(step, params) if super().due(step) else "idle"

    assert loop.train(load(whole), run, callback=Signal()) == TRY_AGAIN
    assert checkpoint.steps(run)[-1] == step
    measured = metrics.read(run / metrics.FILE) + metrics.read(run / "probes.jsonl")
    assert {r["step"] for r in measured if r["kind"] in ("eval", "cost")} == set(range(2, step, 2))
    assert loop.train(load(whole), run, callback=Probe()) == 0
    assert outcome(run) == outcome(whole / "run")


def test_a_run_that_is_complete_is_not_measured_again(whole):
    before = outcome(whole / "run")

    class Never(Probe):
        def on_step(self, step, params):
            raise AssertionError("probed again")

    assert loop.train(load(whole), whole / "run", callback=Never()) == 0
    assert outcome(whole / "run") == before


def test_probe_records_without_their_last_are_dropped(tmp_path):
    probe = Probe(interval=3)
    probe.begin(tmp_path, 0)
    for step in (3, 6):
        probe.on_step(step, {"w": np.ones(2)})
    probe.writer.write({"kind": "weights", "step": 9, "sum": 1.0})
    probe.close()
    for step, missing, kept in ((9, True, [3, 6]), (6, False, [3, 6]), (5, False, [3])):
        assert probe.begin(tmp_path, step) == missing
        probe.close()
        records = metrics.read(tmp_path / "probes.jsonl")
        assert [(r["kind"], r["step"]) for r in records] == [
            (kind, at) for at in kept for kind in ("weights", "cost")
        ]


@pytest.mark.parametrize("batches", [1, 3])
def test_a_save_that_fails_during_an_evaluation_is_said_at_once(
    whole, tmp_path, monkeypatch, batches
):
    """After one of three held-out batches no other is read; after the last, nothing is probed."""
    seen, plain = [], loop.evaluate

    def evaluate(eval_step, *others):
        return plain(lambda *given: seen.append(0) or eval_step(*given), *others)

    def check(self):
        if len(seen) >= batches:
            raise RunError("the save has failed")

    monkeypatch.setattr(loop, "evaluate", evaluate)
    monkeypatch.setattr(checkpoint.Checkpoints, "check", check)
    run = tmp_path / "run"
    with pytest.raises(RunError, match="the save has failed"):
        loop.train(load(whole, eval_sequences=6), run, callback=Probe())
    assert len(seen) == batches
    assert [r["step"] for r in metrics.read(run / metrics.FILE) if r["kind"] == "eval"] == (
        [2] if batches == 3 else []
    )
    assert not metrics.read(run / "probes.jsonl")

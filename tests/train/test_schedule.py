"""A run goes on to more steps as one run that was meant so from the start, or is refused."""

import shutil

import pytest

from hybridlm.analysis.run import Run
from hybridlm.errors import RunError
from hybridlm.runs import checkpoint, metrics, workdir
from hybridlm.train.loop import train
from hybridlm.train.optimizer import learning_rate
from hybridlm.train.schedule import share_of_peak
from hybridlm.train.settings import OptimizerConfig, run_settings
from hybridlm.train.setup import resolve
from tests.train.stages import config, drawn_run
from tests.train.test_kill_and_resume import CLOCK

MODEL = dict(depth=1, tie_embeddings=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dict(token_cache=str(tmp_path_factory.mktemp("tokens")))


def run(path, data, steps, schedule="constant", decay=None, **others):
    """Trains to `steps`; evaluates every 3, saves every 2 and keeps all checkpoints."""
    optimizer = dict(schedule=schedule, decay_steps=decay)
    kept = dict(checkpoint_every=2, keep_checkpoints=9)
    settings = config(MODEL, data=data, optimizer=optimizer, steps=steps, **kept, **others)
    assert train(settings, path) == 0


def state_digest(path, step=None):
    return checkpoint.digest(checkpoint.load_numpy(path, step)[1])


def records(path):
    """The records of training and evaluation, without what a clock measured."""
    kept = [r for r in metrics.read(path / metrics.FILE) if r["kind"] in ("train", "eval")]
    return [{k: v for k, v in r.items() if k not in CLOCK} for r in kept]


@pytest.mark.parametrize(
    "case", ["finished, constant", pytest.param("killed, wsd", marks=pytest.mark.slow)]
)
def test_a_longer_run_has_the_bits_of_one_long_run(case, data, tmp_path, in_root):
    """Only what the shorter run recorded because a step was its last is left of it."""
    how, schedule = case.split(", ")
    decay, every = (2, 1) if schedule == "wsd" else (None, 2)
    long, grown, first = tmp_path / "long", tmp_path / "grown", 5
    run(long, data, 8, schedule, decay, log_every=every)
    run(grown, data, first, schedule, decay, log_every=every)
    (grown / workdir.REPORT).touch()
    if how == "killed":  # after step 5 was recorded, and before it was saved
        for step in (4, 5):
            shutil.rmtree(grown / "checkpoints" / str(step))
    run(grown, data, 8, schedule, decay, log_every=every)
    assert state_digest(grown) == state_digest(long)
    extra = [r for r in records(grown) if r not in records(long)]
    assert [r for r in records(grown) if r not in extra] == records(long)
    left = [("train", 5), ("eval", 5)] if how == "finished" else []
    assert [(r["kind"], r["step"]) for r in extra] == left
    epochs = [Run(p).facts["data"]["sources"]["a"]["epochs"] for p in (grown, long)]
    assert epochs[0] == epochs[1]
    assert not (grown / workdir.REPORT).exists()


# (old schedule, steps, decay steps), newest checkpoint, new steps, new decay steps, words if refused
LENGTHS = [
    (("constant", 8, None), 8, 12, None, None),
    (("constant", 8, None), 4, 6, None, None),
    (("constant", 8, None), 8, 6, None, "has trained 8 steps, and train.steps is 6"),
    (("wsd", 8, 3), 5, 12, 3, None),
    (("wsd", 8, 3), 4, 12, 6, None),
    (("wsd", 8, 3), 5, 12, 8, "--step 5 --decay 7"),
    (
        ("wsd", 8, 3),
        6,
        12,
        3,
        "rate has decayed since step 5: .*hybridlm branch .*--step 6 --decay 6",
    ),
    (
        ("cosine", 8, None),
        4,
        12,
        None,
        "'cosine' has been on its way to step 8.*--step 4 --decay 8",
    ),
    (("linear", 8, None), 8, 12, None, "'linear' .*--step 8 --decay 4 --workdir .*run-decay"),
]


@pytest.mark.parametrize("old, newest, steps, decay, refusal", LENGTHS)
def test_only_a_schedule_that_does_not_depend_on_the_end_may_grow(
    old, newest, steps, decay, refusal, tmp_path
):
    def settings(schedule, steps, decay):
        optimizer = dict(schedule=schedule, decay_steps=decay)
        return config(MODEL, optimizer=optimizer, steps=steps)

    path = tmp_path / "run"
    drawn_run(path, settings(*old), newest)
    asked, _ = resolve(settings(old[0], steps, decay))
    if refusal is None:
        workdir.check_same_run(path, run_settings(asked))
    else:
        with pytest.raises(RunError, match=refusal) as caught:
            workdir.check_same_run(path, run_settings(asked))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_the_share_of_the_peak_is_that_of_the_learning_rate(schedule):
    """`learning_rate` counts updates from 0, the share the steps that were done."""
    decay = 7 if schedule == "wsd" else None
    optimizer = OptimizerConfig(lr=3e-3, schedule=schedule, decay_steps=decay, warmup_steps=3)
    lengths = (10, 20) if schedule == "wsd" else (3, 4, 20)
    for steps, step in ((n, step) for n in lengths for step in range(3, n + 1)):
        rate = float(learning_rate(optimizer, steps, step - 1))
        share = share_of_peak(vars(optimizer), steps, step)
        assert share == pytest.approx(rate / optimizer.lr, 1e-6)

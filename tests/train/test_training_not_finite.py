"""A run of padded batches whose losses are not finite ends like any other, and says what it read."""

import json
import math

import numpy as np
import pytest

from hybridlm import config as configs
from hybridlm.analysis.report import write_report
from hybridlm.commands.full_run import full_run
from hybridlm.commands.inspect import describe
from hybridlm.data import open_pipeline
from hybridlm.errors import WriteError
from hybridlm.models.accounting import train_flops_per_token
from hybridlm.models.params import Model
from hybridlm.runs import metrics
from hybridlm.sweep.progress import run_progress
from hybridlm.train import setup
from hybridlm.train.loop import train
from tests.train import recurrent

pytestmark = pytest.mark.xdist_group("not_finite")  # one run for all tests


def load(folder, **optimizer):
    recurrent.write_text(folder)
    settings = recurrent.settings_of(
        folder,
        data=dict(packing="best_fit"),
        optimizer=dict(schedule="constant", warmup_steps=0, **optimizer),
        train=dict(steps=30, eval_every=30, checkpoint_every=30, abort_after=1000),
    )
    settings |= dict(sample=dict(tokens=4))
    return setup.resolve(configs.read(settings))[0]


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A finished run whose parameters left float32's range at its first update."""
    folder = tmp_path_factory.mktemp("diverged")
    config = load(folder, lr=1e38)
    assert full_run(config, folder / "run") == 0
    return config, folder / "run"


def test_it_counts_as_finished_and_its_losses_are_not_numbers(diverged):
    config, path = diverged
    progress = run_progress(path, config)
    assert progress.state == "finished"
    assert math.isnan(progress.loss) and math.isnan(progress.heldout)
    assert "heldout_loss: nan nats" in describe(path)


def test_its_files_are_json_of_the_standard(diverged):
    def refuse(word):
        raise AssertionError(f"bare {word}")

    _, path = diverged
    lines = (path / metrics.FILE).read_text().splitlines()
    losses = [json.loads(line, parse_constant=refuse).get("loss") for line in lines]
    assert "NaN" in losses


def test_a_full_disk_names_the_report(diverged, full_disk):
    _, path = diverged
    before = (path / "report.html").read_text()
    with (
        full_disk(1000),
        pytest.raises(WriteError, match="run/report.html cannot be written: File"),
    ):
        write_report(path)
    assert (path / "report.html").read_text() == before


def test_each_step_records_the_tokens_and_flops_of_its_documents(diverged):
    """In rows of one recurrent layer, a token takes as many FLOPs wherever it stands."""
    config, path = diverged
    pipeline = open_pipeline(config.data, seed=config.seed, workdir=path)
    batches = pipeline.iterate(0, range(config.data.batch_size))
    real = [int((next(batches)["segment_ids"] != 0).sum()) for _ in range(config.train.steps)]
    batches.close()
    per_token = train_flops_per_token(Model.of(config.model), config.data.seq_len)
    records = [r for r in metrics.read(path / metrics.FILE) if r["kind"] == "train"]
    assert [r["step_real_tokens"] for r in records] == real and min(real) < config.tokens_per_step
    assert [r["step_real_flops"] for r in records] == pytest.approx([per_token * n for n in real])
    shares = [r["real_tokens_per_second"] / r["tokens_per_second"] for r in records]
    means = np.cumsum(real) / np.arange(1, len(real) + 1) / config.tokens_per_step
    np.testing.assert_allclose(shares, means)


@pytest.mark.slow
def test_a_full_disk_names_the_metrics_and_the_run_resumes(tmp_path, full_disk):
    config = load(tmp_path, lr=0.01)
    with full_disk(8_000), pytest.raises(WriteError, match=f"run/{metrics.FILE} cannot be written"):
        train(config, tmp_path / "run")
    assert train(config, tmp_path / "run") == 0
    steps = [
        r["step"] for r in metrics.read(tmp_path / "run" / metrics.FILE) if r["kind"] == "train"
    ]
    assert steps == list(range(1, 31))

"""Probes during training: their records, their log lines, and when the loop runs them."""

import jax
import numpy as np
import pytest

from hybridlm import config
from hybridlm.errors import UserError
from hybridlm.runs import checkpoint, metrics
from hybridlm.train.live_probes import live_probes
from hybridlm.train.loop import NoCallback, train
from kernels_pallas import dispatch

SETTINGS = [
    ("model.width", "16"),
    ("model.depth", "3"),
    ("model.mlp.hidden", "16"),
    ("probes.length", "256"),
    ("probes.samples", "2"),
    ("probes.interval", "3"),
    ("data.bigram_baseline", "False"),
    ("sample.tokens", "0"),
]


def small_config(*overrides):
    return config.load("configs/demo.py:smoke", [*SETTINGS, *overrides])


def test_records_log_lines_and_resume(in_root, tmp_path):
    """Both tables of every head, and the cost; the first run of the probes has no share."""
    live = live_probes(small_config(("probes.which", "['heads', 'slot_share']")))
    assert [s for s in range(1, 9) if live.due(s)] == [3, 6, 8]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: (0.3 * rng.standard_normal(p.shape)).astype(p.dtype), live.model.abstract
    )
    live.begin(tmp_path, 0)
    with dispatch.auto_means("reference"):
        lines = [live.on_step(step, params) for step in (3, 6)]
    live.close()
    assert lines[0].endswith("compiled now") and lines[1].endswith("% of training time")
    assert lines[0].startswith("probes at step 3: best mass 0.")
    records = metrics.read(tmp_path / "probes.jsonl")
    assert {(r["kind"], r["step"]) for r in records} == {
        (kind, step) for kind in ("retrieval_heads", "entropy", "cost") for step in (3, 6)
    }
    assert len(records) == 2 * (8 + 8 + 1)  # no layer has slots
    first, second = (r for r in records if r["kind"] == "cost")
    assert first["share"] is None and 0 < second["share"] <= 1 and second["seconds"] > 0
    for kind in ("retrieval_heads", "entropy"):
        here, there = (
            [{**r, "step": 0} for r in records if (r["kind"], r["step"]) == (kind, s)]
            for s in (3, 6)
        )
        assert here == there  # the same parameters, the same figures
    live.begin(tmp_path, 5)  # a run that resumes after step 5 probes step 6 again
    live.close()
    assert {r["step"] for r in metrics.read(tmp_path / "probes.jsonl")} == {3}


def test_no_probes_by_default_and_errors_name_the_setting(in_root):
    assert isinstance(live_probes(small_config()), NoCallback)
    with pytest.raises(UserError, match="needle does not fit 64 tokens"):
        live_probes(small_config(("probes.which", "['heads']"), ("probes.length", "None")))
    for key, value, sentence in (
        ("which", "['head']", "probes.which names 'head': did you mean 'heads'?"),
        (
            "which",
            "['qk_distance']",
            "probes.which names 'qk_distance': valid are: heads, slot_share",
        ),
        ("which", "['heads', 'heads']", "probes.which names one twice"),
        ("interval", "0", "probes.interval must be at least 1, not 0"),
        ("samples", "0", "probes.samples must be at least 1, not 0"),
        ("length", "1", "probes.length must be at least 2, or None for data.seq_len, not 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            small_config((f"probes.{key}", value))


class Recorder:
    """A callback that records its calls."""

    def __init__(self):
        self.began, self.seen, self.closed = [], {}, 0

    def begin(self, path, step):
        self.began.append(step)

    def due(self, step):
        return step in (2, 4)

    def on_step(self, step, params):
        self.seen[step] = jax.device_get(params)
        return f"recorded step {step}"

    def close(self):
        self.closed += 1


@pytest.mark.slow
def test_the_callback_gets_the_parameters_of_the_step(in_root, tmp_path, capsys):
    """The same as in the checkpoint of that step, and a run without the callback has them too."""
    with_callback, without = tmp_path / "a", tmp_path / "b"
    small = small_config(
        ("train.steps", "4"),
        ("train.checkpoint_every", "2"),
        ("data.token_cache", repr(str(tmp_path / "tokens"))),
    )
    recorder = Recorder()
    assert train(small, with_callback, callback=recorder) == 0
    assert (recorder.began, sorted(recorder.seen), recorder.closed) == ([0], [2, 4], 1)
    assert "recorded step 2" in capsys.readouterr().out
    assert train(small, without) == 0
    for step, params in recorder.seen.items():
        for path in (with_callback, without):
            saved = checkpoint.load_numpy(path, step)[1]["params"]
            assert checkpoint.digest(saved) == checkpoint.digest(params)

"""Calibration lowers each layer's error and changes only what it says; HyPE changes only settings."""

import dataclasses
import time

import numpy as np
import pytest

from hybridlm.distill.calibrate import calibrate
from hybridlm.distill.hype import with_hype
from hybridlm.distill.kinds import KINDS
from hybridlm.distill.transfer import transfer
from hybridlm.errors import UserError
from kernels_pallas import dispatch
from tests.distill.subjects import teacher, tokens


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gdn", "gla"])
def test_every_layer_s_error_falls_on_other_text_too(kind):
    ours = teacher(depth=2)
    found = transfer(ours, dict(kind=kind))
    batches = [tokens(seed, batch=4, time=32) for seed in range(3)]
    fitted = calibrate(ours, found, batches, steps=30, rate=1e-2)
    assert set(fitted.before) == {0, 1}
    for layer in (0, 1):
        assert fitted.after[layer] < min(fitted.before[layer], 0.95)  # 1 is the error of no output
    unseen = [tokens(9, batch=4, time=32)]
    before = calibrate(ours, found, unseen, steps=0).before
    again = dataclasses.replace(found, student=fitted.student, fresh={}, dropped=())
    after = calibrate(ours, again, unseen, steps=0).before
    assert all(after[layer] < before[layer] for layer in (0, 1))
    new = fitted.student.model.by_name(fitted.student.params)
    for name, value in found.student.model.by_name(found.student.params).items():
        if name not in found.fresh and not name.endswith("mixer.out.kernel"):
            np.testing.assert_array_equal(new[name], value, err_msg=name)
        if name.endswith("mixer.out.kernel"):  # each head's rows times one number
            ratio = (new[name] / value).reshape(4, -1)
            np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones_like(ratio), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"attention"}))
def test_every_kind_of_mixer_is_calibrated(kind):
    ours = teacher(depth=1)
    found = transfer(
        ours, dict(kind="moba", block=4, top_k=1) if kind == "moba" else dict(kind=kind)
    )
    batches = [tokens(seed, batch=4, time=32) for seed in range(2)]
    with dispatch.auto_means("reference"):
        fitted = calibrate(ours, found, batches, steps=20, rate=1e-2)
    assert fitted.after[0] < min(fitted.before[0], 0.95)


def test_calibration_says_what_it_does(monkeypatch, impatient, capsys):
    """With a fit that only takes its time."""

    class Slow:
        def __init__(self, *_):
            self.scaled = self.trained = lambda params, *_: time.sleep(0.1) or params
            self.errors = lambda *_: {}

    monkeypatch.setattr("hybridlm.distill.calibrate._Fit", Slow)
    fitted = calibrate(None, transfer(teacher(depth=1), dict(kind="lightning")), [], steps=7)
    assert fitted.before == fitted.after == {}
    said = [line for line in capsys.readouterr().err.splitlines() if line.endswith(" ...")]
    assert said[-3:] == [
        "measuring the student before calibration ...",
        "calibrating the student in 7 steps ...",
        "measuring the calibrated student ...",
    ]


def test_hype_takes_rope_from_full_attention_alone():
    student = transfer(teacher(), dict(kind="lightning"), (0, 1, 3)).student
    changed = with_hype(student, 500.0)
    mixers = [mixer for _, mixer in changed.config.layer_mixers()]
    assert mixers[2].rope is None and mixers[2].temperature.scale == 500.0
    assert all(mixers[i] == student.config.layer_mixers()[i][1] for i in (0, 1, 3))
    assert mixers[0].rope is not None and mixers[0].qk_norm
    named = student.model.by_name(student.params)
    for name, value in changed.model.by_name(changed.params).items():
        np.testing.assert_array_equal(value, named[name])


@pytest.mark.parametrize(
    "kind, layers, sentence",
    [("lightning", None, "no layer has full"), ("gla", (1,), "needs positions in the recurrent")],
)
def test_hype_needs_both_kinds_of_layers(kind, layers, sentence):
    student = transfer(teacher(), dict(kind=kind), layers).student
    with pytest.raises(UserError, match=sentence):
        with_hype(student, None)

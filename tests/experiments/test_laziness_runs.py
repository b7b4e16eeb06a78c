"""A run of the experiment, killed and resumed, ends the same; arms and schedules of windows."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import arms, measure, run, runs, tables
from experiments.large_window_laziness.arms import ARMS, SETS
from hybridlm.models.params import Model


@pytest.fixture
def small(monkeypatch):
    """Makes measurements take seconds."""
    monkeypatch.setattr(measure, "EACH", 2)
    monkeypatch.setattr(measure, "PROMPTS", 2)
    monkeypatch.setattr(measure, "AT_ONCE", 2)
    measure._held_out.cache_clear()
    measure.needles.cache_clear()
    yield
    measure._held_out.cache_clear()
    measure.needles.cache_clear()


def curve(folder):
    kept = [json.loads(line) for line in (folder / "curve.jsonl").open()]
    return [{k: v for k, v in r.items() if not k.endswith("seconds")} for r in kept]


class Stop(Exception):
    pass


def test_a_killed_and_resumed_run_ends_the_same(small, tmp_path):
    arm, silent = ARMS["pilot"]["w4-nope"], lambda line: None
    arm = dataclasses.replace(arm, scale=arm.scale._replace(batch=2, every=2))
    runs.run(arm, 0, tmp_path / "whole", 4, silent)
    lines = []

    def killed(line):
        lines.append(line)
        if len(lines) == 2:
            raise Stop

    with pytest.raises(Stop):
        runs.run(arm, 0, tmp_path / "parts", 4, killed)
    runs.run(arm, 0, tmp_path / "parts", 4, silent)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert [record["step"] for record in curve(tmp_path / "whole")] == [0, 2, 4]
    last = curve(tmp_path / "whole")[-1]
    assert len(last["heads"]) == arms.PILOT.depth * arms.PILOT.heads == len(last["qk"])
    assert all(relative == 0 for *_, relative in last["qk"])
    (tmp_path / "pilot" / "w4-nope").mkdir(parents=True)
    (tmp_path / "parts").rename(tmp_path / "pilot" / "w4-nope" / "0")
    rows, (facts,) = tables.collect(tmp_path / "pilot")
    assert len(rows) == 3 and facts["formed"] == 0 and facts["formed_step"] == 4
    words = ["--workdir", str(tmp_path), "--scale", "pilot"]
    assert run.main([*words, "--arms", "w4-nope", "--seeds", "1"]) == 0


@pytest.mark.parametrize("scale", arms.SCALES.values(), ids=list(arms.SCALES))
def test_needles_lie_beyond_every_window(small, scale):
    made = measure.needles(scale.task, None)
    for tokens, rows, needle in zip(made.tokens_NT, made.rows_NQ, made.needle_NT):
        (places,) = np.nonzero(needle)
        answer = tokens[rows[rows >= 0] + 1]
        np.testing.assert_array_equal(tokens[places], answer)
        assert rows[0] - places[0] + 1 >= scale.task.bins[-1][0] >= scale.large


def test_one_program_serves_all_windows():
    windowed = [arm for arm in ARMS["main"].values() if arm.final is not None]
    assert len({repr(arm.model()) for arm in windowed}) == 2  # RoPE and NoPE


def test_schedules_end_at_the_large_window():
    curriculum = arms.curriculum(4, 128)
    seen = [curriculum(step, 1000, 0) for step in range(1000)]
    assert seen[0] == 4 and set(seen) == {4, 8, 16, 32, 64, 128} and seen == sorted(seen)
    assert seen[500:] == [128] * 500
    drawn = [arms.stochastic(4, 128)(step, 1000, 3) for step in range(1000)]
    assert set(drawn) == {4, 128} and 400 < drawn.count(4) < 600
    assert drawn == [arms.stochastic(4, 128)(step, 1000, 3) for step in range(1000)]
    assert set(arms.dropout(128)(step, 1000, 3) for step in range(50)) == {1, 128}


def test_every_arm_has_a_model():
    assert len(ARMS["main"]) == sum(map(len, SETS["main"].values())) == 30
    for arm in (*ARMS["main"].values(), *ARMS["pilot"].values()):
        assert arm.model().layout.names == ("local", "full") * 2
        assert (arm.model().mixers["full"].rope is None) == arm.nope


def test_the_large_scale_has_100_million_parameters():
    arm = ARMS["large"]["w512-rope"]
    assert 0.9e8 < Model.of(arm.model()).count() < 1.1e8
    assert arm.model().layout.names == ("local", "full") * 7 and arm.final == 512


def test_an_unknown_arm_is_one_sentence(tmp_path, capsys):
    assert run.main(["--workdir", str(tmp_path), "--arms", "w5"]) == 2
    assert "there is no 'w5'" in capsys.readouterr().err

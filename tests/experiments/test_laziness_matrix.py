"""The paper's matrix: published parameter counts, budgets, and a dry run of every point."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import sweep, text
from experiments.large_window_laziness.sweep import BUDGETS, LOCAL, SIZES
from hybridlm import config as configs
from hybridlm.analysis.cost import cost
from hybridlm.errors import ConfigError

PUBLISHED = {"S1": 14_999_424, "S2": 31_470_080, "S3": 64_901_760, "S4": 104_427_264}


@pytest.mark.parametrize("size", SIZES)
def test_shapes_have_the_published_parameters(in_root, size):
    """Exactly for S1 to S4 without embeddings, and 71M and 665M with them for S1 and S5."""
    figures = cost(configs.load(f"configs/laziness.py:swa128,{size}", []))
    assert figures["parameters_without_embedding"] == PUBLISHED.get(size, SIZES[size].params)
    whole = {"S1": 71e6, "S5": 665e6}
    if size in whole:
        assert figures["parameters"] == pytest.approx(whole[size], rel=0.01)


@pytest.mark.parametrize("architecture", LOCAL)
def test_architectures_are_matched_and_budgets_met(in_root, architecture):
    for budget in (100, 1000):
        config = configs.load(f"configs/laziness.py:{architecture},S1,{budget}n", [])
        figures = cost(config)
        assert figures["parameters_without_embedding"] == pytest.approx(PUBLISHED["S1"], rel=0.03)
        assert figures["tokens"] == pytest.approx(budget * PUBLISHED["S1"], rel=0.001)
        assert config.data.seq_len == 16_384


def test_nope_is_in_the_full_layers_alone(in_root):
    mixers = configs.load("configs/laziness.py:nope,S2,200n,swa128", []).model.mixers
    assert mixers["full"].rope is None and mixers["local"].rope is not None


@pytest.mark.parametrize("flags", ["", ",nope"])
@pytest.mark.parametrize("architecture", LOCAL)
def test_sweeps_are_flat_overrides_of_the_recipe(in_root, architecture, flags):
    """30 points, each the same config as its argument gives."""
    spec = f"configs/laziness.py:{architecture}{flags}"
    found = configs.sweep(spec)
    names = [f"{size},{budget}n" for size in SIZES for budget in BUDGETS]
    assert len(found) == len(names) == 30
    for overrides, name in zip(found, names):
        assert configs.load(spec, list(overrides.items())) == configs.load(f"{spec},{name}")


def test_a_sweep_keeps_to_what_its_argument_names(in_root):
    assert len(configs.sweep("configs/laziness.py:gdn,S2")) == len(BUDGETS)
    assert len(configs.sweep("configs/laziness.py:200n")) == len(SIZES)
    assert configs.sweep("configs/laziness.py:gdn,S2,200n") == [{}]


def test_a_wrong_argument_is_one_sentence(in_root):
    for argument in ("S6", "S1,S2", "150n", "gdn,full", "smoek"):
        sentence = f"argument '{argument}': give at most one of full, swa128, .*, one of S1, S2, "
        with pytest.raises(ConfigError, match=sentence):
            configs.load(f"configs/laziness.py:{argument}")


def test_one_command_sweeps(in_root, capsys):
    """Every point in a dry run of one size; commands; and what is wrong in a sentence."""
    words = ["--workdir", "runs/m", "--sizes", "S1", "--budgets", "100,1000"]
    assert sweep.main([*words, "--dry_run"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 * len(LOCAL) and all(line["flops"] > 1e17 for line in lines)
    assert sweep.main(["--workdir", "runs/m", "--print_commands", "--nope"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == len(LOCAL) * len(SIZES) * len(BUDGETS) == 210
    assert commands[0] == (
        "hybridlm train --config configs/laziness.py:full,S1,100n,nope"
        " --workdir runs/m/full-nope-S1-100n"
    )
    assert sweep.main([*words, "--architectures", "rnn"]) == 2
    assert "--architectures 'rnn' is unknown" in capsys.readouterr().err


def test_text_matrix_dry_run(in_root, capsys):
    assert text.main(["--workdir", "runs/t", "--dry_run", "--seeds", "1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["run"] for line in lines][:2] == ["w16-rope-0", "w128-rope-0"]
    assert len({line["parameters"] for line in lines}) == 1 and len(lines) == 10


@pytest.mark.slow
def test_text_runs_and_makes_its_table(in_root, tmp_path, capsys):
    words = ["--workdir", str(tmp_path), "--smoke", "--only", "w16-nope-0", "--steps", "4"]
    assert text.main(words) == 0
    assert text.main(["--workdir", str(tmp_path), "--table"]) == 0
    rows = (tmp_path / "text.tsv").read_text().splitlines()
    assert rows[0].split("\t") == list(text.COLUMNS) and len(rows) == 5

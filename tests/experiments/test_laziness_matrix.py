"""The paper's matrix: published parameter counts, budgets, and dry runs."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import sweep
from experiments.large_window_laziness.sweep import BUDGETS, LOCAL, SIZES
from hybridlm import config as configs
from hybridlm.analysis.cost import cost
from hybridlm.errors import ConfigError

PUBLISHED = {"S1": 14_999_424, "S2": 31_470_080, "S3": 64_901_760, "S4": 104_427_264}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_published_parameter_counts(in_root, size):
    """S1 to S4 exactly without embeddings; S1 and S5 within 1% of 71M and 665M with them."""
    figures = cost(configs.load(f"configs/laziness.py:swa128,{size}", []))
    assert figures["parameters_without_embedding"] == PUBLISHED.get(size, SIZES[size].params)
    whole = {"S1": 71e6, "S5": 665e6}
    if size in whole:
        assert figures["parameters"] == pytest.approx(whole[size], rel=0.01)


@pytest.mark.parametrize("architecture", LOCAL)
def test_architectures_have_equal_parameters_and_budgets(in_root, architecture):
    for budget in (100, 1000):
        config = configs.load(f"configs/laziness.py:{architecture},S1,{budget}n", [])
        figures = cost(config)
        assert figures["parameters_without_embedding"] == pytest.approx(PUBLISHED["S1"], rel=0.03)
        assert figures["tokens"] == pytest.approx(budget * PUBLISHED["S1"], rel=0.001)
        assert config.data.seq_len == 16_384


def test_nope_applies_to_the_full_layers_only(in_root):
    mixers = configs.load("configs/laziness.py:nope,S2,200n,swa128", []).model.mixers
    assert mixers["full"].rope is None and mixers["local"].rope is not None


@pytest.mark.parametrize("flags", ["", ",nope"])
@pytest.mark.parametrize("architecture", LOCAL)
def test_sweeps_are_flat_overrides_of_the_recipe(in_root, architecture, flags):
    """30 points, each with the same config as from its argument."""
    spec = f"configs/laziness.py:{architecture}{flags}"
    found = configs.sweep(spec)
    names = [f"{size},{budget}n" for size in SIZES for budget in BUDGETS]
    assert len(found) == len(names) == 30
    for overrides, name in zip(found, names):
        assert configs.load(spec, list(overrides.items())) == configs.load(f"{spec},{name}")


def test_a_sweep_keeps_the_values_in_its_argument(in_root):
    assert len(configs.sweep("configs/laziness.py:gdn,S2")) == len(BUDGETS)
    assert len(configs.sweep("configs/laziness.py:200n")) == len(SIZES)
    assert configs.sweep("configs/laziness.py:gdn,S2,200n") == [{}]


def test_an_error_in_the_argument_is_one_sentence(in_root):
    for argument in ("S6", "S1,S2", "150n", "gdn,full", "smoek"):
        sentence = f"argument '{argument}': give at most one of full, swa128, .*, one of S1, S2, "
        with pytest.raises(ConfigError, match=sentence):
            configs.load(f"configs/laziness.py:{argument}")


def test_the_sweep_command(in_root, capsys):
    """The dry run of one size, the printed commands, and the error for an unknown architecture."""
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

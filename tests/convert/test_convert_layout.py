"""Lists of layers are folded into patterns that unfold to the same layers."""

import random

import pytest

from hybridlm.convert.layout import LayerSettings, fold, laid_out
from hybridlm.models.pattern import parse


def unfolded(folded, depth):
    names = "abcdef"
    return parse(folded["pattern"], depth, folded["prefix"], folded["suffix"], names).names


@pytest.mark.parametrize("seed", range(200))
def test_any_layers_unfold_to_themselves(seed):
    draw = random.Random(seed)
    unit = [draw.choice("abc") for _ in range(draw.randint(1, 5))]
    before = [draw.choice("abcdef") for _ in range(draw.choice((0, 0, 1, 3)))]
    after = [draw.choice("abcdef") for _ in range(draw.choice((0, 0, 1, 2)))]
    layers = (before + unit * draw.randint(1, 7) + unit[: draw.randint(0, len(unit))] + after)[:40]
    assert list(unfolded(fold(layers), len(layers))) == layers


def test_the_shortest_unit_is_found():
    assert fold("aab" * 8)["pattern"] == "a*2 b"
    assert fold("aab" * 8 + "aa") == {"prefix": "", "pattern": "a*2 b", "suffix": ""}
    assert fold("c" + "ab" * 9) == {"prefix": "c", "pattern": "a b", "suffix": ""}
    assert fold("ab" * 9 + "c") == {"prefix": "", "pattern": "a b", "suffix": "c"}
    assert fold("a" * 30) == {"prefix": "", "pattern": "a", "suffix": ""}


def test_layers_with_other_settings_get_other_names():
    one, two, mlp = {"kind": "x", "n": 1}, {"kind": "x", "n": 2}, {"kind": "m"}
    found = laid_out([LayerSettings("x", s, mlp) for s in (one, two, one, two)])
    assert found["mixers"] == {"x": one, "x_2": two}
    assert (found["pattern"], found["mlp"]) == ("x x_2", mlp)


def test_layers_without_a_half_say_none():
    mixer, mlp = {"kind": "x"}, {"kind": "m"}
    layers = [LayerSettings("x", mixer, None), LayerSettings("", None, mlp)] * 3
    found = laid_out(layers)
    assert found["pattern"] == "x+none none+mlp"
    assert found["feedforwards"] == {"mlp": mlp}

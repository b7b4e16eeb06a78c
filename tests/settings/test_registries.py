"""Registries: one object a name, and the nearest name for one that is not there."""

import types

import pytest

from hybridlm.errors import UserError
from hybridlm.settings.names import nearest
from hybridlm.settings.registry import by_name, choose

ENTRIES = [types.SimpleNamespace(name=name) for name in ("long", "short")]


def test_entries_keep_their_order_and_are_chosen_in_the_order_asked_for():
    known = by_name(ENTRIES)
    assert list(known) == ["long", "short"]
    assert choose(known, ["short", "long"], "kind") == ENTRIES[::-1]


@pytest.mark.parametrize(
    "name, said",
    [
        ("warmup", "did you mean 'warmup_steps'?"),
        ("dim", "did you mean 'head_dim'?"),
        ("steps", "valid are: decay_steps, head_dim, lr, warmup_steps"),  # two end so
        ("r", "valid are: decay_steps, head_dim, lr, warmup_steps"),  # no whole word
    ],
)
def test_whole_words_of_one_name_suggest_it(name, said):
    assert nearest(name, ["warmup_steps", "decay_steps", "head_dim", "lr"]) == said


def test_what_is_not_there_is_said():
    with pytest.raises(UserError, match="--kind 'shrot' is unknown: did you mean 'short'?"):
        choose(by_name(ENTRIES), ["long", "shrot"], "kind")
    with pytest.raises(ValueError, match="'long' is registered twice"):
        by_name([*ENTRIES, ENTRIES[0]])

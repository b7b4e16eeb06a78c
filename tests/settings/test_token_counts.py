"""Options that count tokens take 4k, and a length that no model can tell apart is one sentence."""

import dataclasses
import re
import typing

import pytest

from hybridlm.commands.main import COMMANDS
from hybridlm.data.settings import DataConfig
from hybridlm.errors import UserError
from hybridlm.evals.settings import HarnessSettings
from hybridlm.generation.settings import SampleConfig
from hybridlm.probes.settings import ProbesConfig
from hybridlm.settings.reader import Invalid
from hybridlm.settings.text import TOKENS, read_texts

CLASSES = list(dict.fromkeys([c for command in COMMANDS.values() for c in command.settings()])) + [
    HarnessSettings
]
COUNTED = [
    (cls, field.name)
    for cls in CLASSES
    for field in dataclasses.fields(cls)
    if {"length", "lengths", "tokens", "len", "window", "windows", "context"}
    & set(field.name.split("_"))
    and re.search(r"\bint\b", str(typing.get_type_hints(cls)[field.name]))
]
#: At most so much of a text is read, and the states of so many tokens are only counted.
ANY_SIZE = ("calibration_tokens", "calibration_length", "context")
NEEDED = dict(workdir="w", tasks="t", probes="p", lengths="8", teacher="t", out="o", mixer="m")


def read(cls, name, text):
    needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    return read_texts(cls, {n: NEEDED[n] for n in needed if n in NEEDED} | {name: text})


def test_the_options_are_found():
    names = {name for _, name in COUNTED}
    assert names > {"tokens", "lengths", "length", "windows", "max_length", *ANY_SIZE}


@pytest.mark.parametrize("cls, name", COUNTED, ids=[f"{c.__name__}.{n}" for c, n in COUNTED])
def test_an_option_that_counts_tokens_takes_4k(cls, name):
    found = getattr(read(cls, name, "4k"), name)
    assert found in (4096, (4096,))
    assert {f.name: f for f in dataclasses.fields(cls)}[name].metadata == TOKENS


@pytest.mark.parametrize("cls, name", COUNTED, ids=[f"{c.__name__}.{n}" for c, n in COUNTED])
def test_a_length_beyond_all_bounds_is_one_sentence(cls, name):
    if name in ANY_SIZE:
        assert getattr(read(cls, name, "2000000000"), name) == 2_000_000_000
        return
    with pytest.raises(UserError, match=rf"^--{name} must be at most .*, not 2000000000$"):
        read(cls, name, "2000000000")


@pytest.mark.parametrize(
    "cls, given",
    [
        (SampleConfig, {"tokens": 2_000_000_000}),
        (ProbesConfig, {"length": 2_000_000_000}),
        (DataConfig, {"seq_len": 2_000_000_000, "batch_size": 1, "sources": {"a": None}}),
    ],
)
def test_a_setting_beyond_all_bounds_is_refused(cls, given):
    with pytest.raises(Invalid, match="must be at most .*, not 2000000000"):
        cls(**given)

"""The legend of dimensions has exactly the letters in use."""

import pathlib
import re

from hybridlm import models
from hybridlm.models import dimensions

SOURCES = sorted(pathlib.Path(models.__file__).parent.rglob("*.py"))
LEGEND = re.findall(r"^ {4}([A-Z])  \S", dimensions.__doc__, re.MULTILINE)


def test_each_letter_is_listed_once():
    assert len(LEGEND) == len(set(LEGEND)) > 10


def test_the_letters_of_suffixes_are_those_of_the_legend():
    used = {}
    for path in SOURCES:
        for name, letters in re.findall(
            r"\b([a-z]\w*_([A-Z1]*[A-Z][A-Z1]*))\b", path.read_text("utf-8")
        ):
            for letter in letters.replace("1", ""):
                used.setdefault(letter, set()).add(f"{path.name}: {name}")
    assert {letter: used[letter] for letter in set(used) - set(LEGEND)} == {}
    assert set(LEGEND) - set(used) == set()

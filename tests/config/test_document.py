"""The page of settings gives the meaning and the valid values of each setting."""

import dataclasses
import re
import typing

import pytest

from hybridlm.config.document import SECTIONS, render
from hybridlm.settings.bounds import bounds_of


def test_every_setting_has_a_meaning():
    rows = re.findall(r"^\| `.*", render(), re.MULTILINE)
    assert len(rows) > 150
    missing = [row for row in rows if re.search(r"\|\s*\|$", row)]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("path, cls", SECTIONS, ids=[path or "top" for path, _ in SECTIONS])
def test_every_number_has_a_bound(path, cls):
    """A number without a bound is an oversight."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for name, hint in ((field.name, hints[field.name]) for field in dataclasses.fields(cls)):
        numbers = {hint, *typing.get_args(hint)} & {int, float}
        assert not numbers or bounds_of(hint)[1], f"{path}.{name} is any {numbers}"


def test_types_show_their_bounds():
    page = render()
    for row in (
        "| `width` | whole number, at least 1 | required | size of the residual stream. |",
        "| `seed` | whole number in [0, 2^31) | `0` |",
        "| `b1` | number in [0, 1) | `0.9` |",
        "| `clip_norm` | number above 0, or `None` | `1.0` |",
        "| `data` | whole number, at least 1, or -1 | `-1` |",
        "| `sources` | settings by name, not empty | required |",
    ):
        assert row in page

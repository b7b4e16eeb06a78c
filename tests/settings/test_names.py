"""Which known name a misspelling means."""

import numpy as np
import pytest

from hybridlm.settings.names import ABSENT, explained, nearest

KNOWN = ["adafactor", "adamw", "lion", "muon", "rglru", "weight_decay"]


@pytest.mark.parametrize("name", KNOWN)
def test_a_slip_of_the_fingers_is_understood(name):
    """Two neighbours swapped, one letter twice or missing of five, another case or hyphen."""
    at = int(np.random.default_rng().integers(len(name) - 1))
    swapped = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    slips = [swapped, name[:at] + name[at] + name[at:], name.upper(), name.replace("_", "-")]
    if len(name) > 4:
        slips.append(name[:at] + name[at + 1 :])
    for slip in slips:
        assert nearest(slip, KNOWN) == f"did you mean {name!r}?", slip
        assert explained(slip, KNOWN, {}, "kind") == f"did you mean {name!r}?", slip


@pytest.mark.parametrize("name", ["linformer", "soap", "12", "", "-", "*"])
def test_another_name_is_not_a_slip(name):
    known = [*KNOWN, "transformer", "21", "1"]
    listed = f"valid are: {', '.join(sorted(known))}"
    assert nearest(name, known) == listed
    assert explained(name, known, {}, "kind") == listed


def test_what_is_absent_is_said_of_its_misspelling_too():
    sentence = "there is no such kind; valid are: muon"
    assert explained("shamopo", ["muon"], {"shampoo": ABSENT}, "kind") == sentence
    assert nearest("muon", []) == "none is defined"

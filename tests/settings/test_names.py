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


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("kda_attention", "did you mean 'kda'?"),
        ("KDA-attn", "did you mean 'kda'?"),
        ("mamba2_mixer", "did you mean 'mamba2'?"),
        ("slef_attention", "did you mean 'attention'?"),
        ("slidng_attention", "did you mean 'attention' with window=...?"),
        ("sliding_attn", "did you mean 'attention' with window=...?"),
        ("sliding_mixer", "did you mean 'attention' with window=...?"),
        ("atention", "did you mean 'attention'?"),
        ("attention_layer", "did you mean 'attention'?"),
        ("diff_attention", "valid are: attention, kda, mamba2"),
        ("performer_attention", "there is no such mixer; valid are: attention, kda, mamba2"),
    ],
)
def test_what_stands_before_an_ending_of_the_field_makes_the_name(name, meaning):
    others = {"self_attention": "'attention'", "sliding_attention": "'attention' with window=..."}
    others["performer"] = ABSENT
    assert explained(name, ["attention", "kda", "mamba2"], others, "mixer") == meaning

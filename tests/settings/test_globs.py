"""Globs choose names by their dotted parts, and a glob that chooses nothing is refused."""

import pytest

from hybridlm.errors import ConfigError
from hybridlm.settings.globs import select

NAMES = [
    "embedding",
    *(f"layers.{i}.{part}.kernel" for i in range(12) for part in ("mixer.q", "mixer.gate", "mlp")),
    "head.kernel",
]


def matching(*parts):
    return [n for n in NAMES if any(p in f"{n}." for p in parts)]


@pytest.mark.parametrize(
    "globs, expected",
    [
        ("", []),
        ("*", NAMES),
        ("head", ["head.kernel"]),
        ("layers.1", [n for n in NAMES if n.startswith("layers.1.")]),
        ("layers.1*", [n for n in NAMES if n.startswith("layers.1")]),
        ("layers.?.mlp", [n for n in NAMES if n.endswith("mlp.kernel")][:10]),
        ("layers.[0-3].mixer.q", [f"layers.{i}.mixer.q.kernel" for i in range(4)]),
        (" head | *.gate ", matching(".gate.", "head.")),
        ("*.gate|embedding", matching(".gate.", "embedding.")),
        ("*|!layers.*.mixer", matching("embedding.", ".mlp.", "head.")),
        ("layers|!layers.1?|layers.11.mlp", [*NAMES[1:31], "layers.11.mlp.kernel"]),
    ],
)
def test_globs_choose_names_in_the_names_order(globs, expected):
    assert select(globs, NAMES, "x") == expected


@pytest.mark.parametrize(
    "globs, message",
    [
        (
            "layers.1.mixer.p",
            "optimizer.freeze has 'layers.1.mixer.p', which matches no name: near",
        ),
        ("head|layers.12", "near it are layers."),
        ("!Embedding", "near it are embedding"),
        ("xyz*", "names begin with embedding, layers, head"),
        ("head|", "with an empty glob"),
        (" ", "with an empty glob"),
    ],
)
def test_a_glob_that_matches_nothing_is_refused(globs, message):
    with pytest.raises(ConfigError) as caught:
        select(globs, NAMES, "optimizer.freeze")
    assert message in str(caught.value) and "\n" not in str(caught.value)

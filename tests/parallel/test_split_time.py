"""Time split over devices: results equal those of one device; no device gets a whole sequence."""

import re

import pytest

from hybridlm import config
from hybridlm.errors import ConfigError
from hybridlm.train.setup import check_divides
from kernels_pallas.testing import collectives
from tests.parallel.programs import run_program

PROGRAM = "context_program.py"
# One mixer of each kind; MIXERS are in every test run, MORE only in slow ones.
MIXERS = ["full", "gdn", "nha"]
MORE = ["swa", "rec", "ssd", "chunked", "sink", "growing", "mla", "deltanet", "kda", "short"]
MORE += ["gdn2", "product", "rwkv7"]
MORE += [
    "s6",
    "s6_jamba",
    "gla",
    "hgrn2",
    "lightning",
    "hymba",
    "nested",
    "gsa",
    "nha_full",
    "mlstm",
    "ssm3",
    "ssm3_mimo",
    "forgetful",
    "forgetful_swa",
    "moba",
    "dsa",
]


def test_split_mixers_equal_one_device(root):
    assert run_program(root, PROGRAM, "equal", *MIXERS).split() == MIXERS


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MORE)
def test_split_mixer_equals_one_device(mixer, root):
    assert run_program(root, PROGRAM, "equal", mixer).split() == [mixer]


def test_no_device_receives_the_whole_sequence(root):
    """A hybrid at context 8: devices exchange tokens and states; no array has all 176 tokens."""
    found = [
        (kind, shape)
        for kind, dtype, shape in collectives(run_program(root, PROGRAM, "collectives"))
        if dtype[0] == "f" and shape
    ]
    assert sum(kind == "collective-permute" for kind, _ in found) > 10
    assert not [x for x in found if {176, 3 * 176} & set(x[1])], found
    assert not [x for x in found if x[0] in ("all-gather", "all-to-all") and 22 in x[1]], found


def test_an_indivisible_length_is_refused_with_the_nearest_divisible_ones():
    made = config.load("configs/demo.py:smoke", [("data.seq_len", "130")])
    with pytest.raises(ConfigError, match=r"data.seq_len 130 does not divide over 4 .* 128 or 132"):
        check_divides(made, (1, 1, 1, 4, 1))


@pytest.mark.parametrize(
    "recipe, sentence",
    [
        ("demo", "model.mixers.swa.kv_heads 2 does not divide over 4 shards (tensor): use 4"),
        ("mixers/mamba2", "model.mixers.mixer.groups 1 does not divide"),
        ("mixers/hgrn2", "model.mixers.mixer.heads (model.width / expand) 2 does not divide"),
        ("mixers/hymba", "model.mixers.mixer.branches.ssm.groups 1 does not divide"),
    ],
)
def test_indivisible_heads_are_refused(recipe, sentence):
    made = config.load(f"configs/{recipe}.py:smoke")
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        check_divides(made, (1, 1, 4, 1, 1))
    check_divides(made, (4, 1, 1, 1, 1))

"""Every kernel compiles for every chip, no worse than the committed scorecard says: `make aot`."""

import pytest

pytest.importorskip("libtpu", reason="the compilers of absent chips have their own: `make aot`")

from kernels_pallas.aot import cases, scorecard
from kernels_pallas.aot.chips import CHIPS

OURS = {name: case for name, case in cases.by_name().items() if case.rival_of is None}
COMPILED = [
    (name, chip)
    for name, case in OURS.items()
    for chip in CHIPS
    if CHIPS[chip].platform in case.platforms
]


@pytest.mark.parametrize("name, chip", COMPILED, ids=[f"{n} on {c}" for n, c in COMPILED])
def test_no_kernel_got_worse(name, chip, root):
    results = scorecard.compile_all([OURS[name]], [chip])
    assert results[name][chip]["compiles"], results[name][chip]["reason"]
    committed = scorecard.read(root / "benchmarks/scorecard.json")["cases"]
    assert scorecard.worse(results, committed) == []

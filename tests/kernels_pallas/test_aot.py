"""The scorecard reads programs correctly, and the committed one has only existing cases."""

import pytest

from kernels_pallas.aot import bundles, cases, document, scorecard
from kernels_pallas.aot.chips import CHIPS

# A grid of (4, 2). At each step: a region of 3 bundles at the first of 2, then a loop of 3 bundles, 5
# times, with a spill, then a data-dependent region of 2.
PROGRAM = """
     0   :  { %s1_s1 = smov 0 }
   0x1 LB: > { %s9_s9 = sadd.s32 1, %s9_s9 ;; %s7_s7 = smov %s9_s9 /* iteration index, stage = 1 iter bound = 1 */ }
   0x2   : > { %p1_p1 = scmp.ne.s32.totalorder %s7_s7, 0 }
   0x3   : > { %1 = sbr.rel (%p1_p1) target = $region5  ;;  %2 = dma.hbm_to_vmem %s7_s7 /*
iteration_bounds: (4, 2)
*/ }
   0x4   : > { %s2_s2 = smov 0 }
   0x5   : > { %s3_s3 = smov 0 }
   0x6   : > { %s4_s4 = smov 0 }
   0x7   :  {}
   0x8   : > { %v1 = vmov 0 } /* Start region 4 */
   0x9   : > { %v2 = vmov 0 }
   0xa   : > { %v3 = vmov 0 }
   0xb PF: > { %s5_s5 = smov 0 } /* Start/End empty region 5 */
   0xc LB: >> { %s6_s6 = sadd.s32 1, %s6_s6 }
   0xd   : >> { %p2_p2 = scmp.ge.s32.totalorder %s6_s6, 5 /* loop exit test */ }
   0xe   : >> { %3 = sbr.rel (!%p2_p2) target = $region9 }
   0xf   : > { %p3_p3 = scmp.lt.s32.totalorder %s11_s11, 3 }
  0x10   : > { %4 = sbr.rel (%p3_p3) target = $region7 }
  0x11   : > { %s12_s12 = smov 0 }
  0x12   : > { %s13_s13 = smov 0 }
  0x13   : > { %s14_s14 = smov 0 }
  0x14   : > { %s15_s15 = smov 0 }
  0x15   : > { %v4 = vmov 0 }
  0x16   : > { %v5 = vmov 0 }
  0x17 PF: > { %p4_p4 = scmp.ge.s32.totalorder %s9_s9, 10 /* loop exit test */ } /* Start/End empty region 7 */
  0x18   :  { %s16_s16 = smov 0 }
"""


@pytest.fixture
def program(tmp_path):
    """`read` of the program above."""
    rows = ["0 0 1 0 0 0 0 0 0 1"] * 25
    rows[0xD] = "2 0 0 0 0 0 0 1 1 0"
    table = "MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU\n"
    table += "4 3 4 2 1 3 3 1 1 2\n== UTILIZATION:\n" + "\n".join(rows)
    final, utilization = tmp_path / "final.txt", tmp_path / "utilization.txt"
    final.write_text(PROGRAM)
    utilization.write_text(table)
    return lambda **told: bundles.read(final, utilization, **told)


def test_bundles_are_weighted_by_how_often_they_run(program):
    always = 3 + 5 - 1 + 1 + 6 + 1  # bundles 1-3, 4-7, 11, 15-20, 23
    assert program().steps == 8
    assert program().bundles == 2 + 8 * (always + 3 / 2 + 3 * 5 + 2)
    assert program(active=0.25).bundles == 2 + 8 * (always + 3 / 2 + 3 * 5 + 2 / 4)


def test_slots_and_spills(program):
    read = program()
    assert read.slots["MXU"] == 8 * 5 * 2
    assert (read.spills, read.inner_spills, read.unknown, read.open_loops) == (1, 1, 1, 0)


def test_a_data_dependent_loop_has_the_stated_trip_count(program, tmp_path):
    constant, data = "%s6_s6, 5 /* loop", "%s6_s6, %s99_s99 /* loop"
    final = tmp_path / "final.txt"
    final.write_text(PROGRAM.replace(constant, data))
    once, twice = program(), program(trips=(2.5,))
    assert (once.open_loops, twice.open_loops) == (1, 0)
    assert twice.bundles - once.bundles == 8 * 3 * 1.5


def test_growth_is_found():
    def card(per_token, spills=0, compiles=True):
        kernels = {"forward": dict(per_token=per_token, spills=spills)}
        return {"op": {"v5e": dict(compiles=compiles, reason="VMEM", kernels=kernels)}}

    assert scorecard.worse(card(1.09), card(1.0)) == []
    assert scorecard.worse(card(1.11), card(1.0)) == [
        "op on v5e: forward has per_token 1.11, had 1.0"
    ]
    assert scorecard.worse(card(1.0, spills=3), card(1.0)) == [
        "op on v5e: forward has spills 3, had 0"
    ]
    assert scorecard.worse(card(1.0, compiles=False), card(1.0)) == [
        "op on v5e no longer compiles: VMEM"
    ]


#: Cases that spill, on TPUs in inner loops; docs/kernels.md says how much, and `scorecard.worse` that it does
#: not grow.
SPILLING = {
    "attention W=2048 size=256",
    "attention W=all size=256",
    "attention W=2048 soft_cap=50.0",
    "attention W=all size=256 soft_cap=50.0",
    "attention W=all forget=True",
    "attention W=all, 65,536 tokens forget=True",
    "attention W=512 forget=True, Hopper",
    "attention W=2048 kv_heads=2 forget=True, Hopper",
}


def best_of_splash(committed, window, chip) -> float:
    """Bundles per token of the best blocks of each pass; backward is one kernel or two."""
    best = {}
    for name, results in committed.items():
        if name.startswith(f"splash W={window} ") and results[chip]["compiles"]:
            for kernel, numbers in results[chip]["kernels"].items():
                of = "fused" if name.endswith(" fused") and "_dkv_" in kernel else kernel
                best[of] = min(best.get(of, float("inf")), numbers["per_token"])
    fused = best.pop("fused", float("inf"))
    forward = next(bundles for kernel, bundles in best.items() if "_fwd_" in kernel)
    return min(sum(best.values()), forward + fused)


def test_the_committed_scorecard_meets_its_bars(root):
    """All kernels compile, no loop spills but those of `SPILLING`, and attention and the delta rule need
    fewer bundles than their rivals."""
    committed = scorecard.read(root / "benchmarks/scorecard.json")["cases"]
    for name, chip in cases.ours():
        result = committed[name][chip]
        assert result["compiles"], f"{name} on {chip}"
        for kernel in result["kernels"].values():
            if name not in SPILLING:
                assert kernel.get("inner_spills", 0) == 0, f"{name} on {chip}"
                assert kernel.get("spill_stores", 0) == 0, f"{name} on {chip}"
    for chip in (name for name, chip in CHIPS.items() if chip.platform == "tpu"):
        for window in (128, 512, 2048, "all"):
            splash = best_of_splash(committed, window, chip)
            assert committed[f"attention W={window}"][chip]["per_token"] <= splash
        for ours, peer in (("scalar", "gdn 16 heads"), ("channel", "kda 32 heads")):
            bundles = committed[f"deltanet-tpu {peer}"][chip]["per_token"]
            assert committed[f"delta_rule {ours} gate"][chip]["per_token"] <= 0.7 * bundles


def test_support_tables_on_the_page_are_current(root):
    page = (root / document.PAGE).read_text()
    assert document.filled(page) == page, "run `python -m kernels_pallas.aot.document`"


def test_the_committed_scorecard_has_no_stale_rows(root):
    """A case that was not compiled may be missing, but every row is an existing case."""
    committed = scorecard.read(root / "benchmarks/scorecard.json")["cases"]
    ours = {n for n in committed if not n.startswith(("splash", "deltanet-tpu"))}
    assert ours <= set(cases.by_name())
    for name in ours:
        assert set(committed[name]) <= set(CHIPS)

"""The instructions that move the most bytes, of programs counted by hand."""

import pathlib

import pytest

from hybridlm.aot import hlo, hlo_largest

TRIPS, ROWS = 7, 2**24
# A loop of 7 trips negates and exponentiates one array, in two instructions of one source and a
# third of another; then one copy outside moves more than each of them, and less than two together.
PROGRAM = f"""
%body (state: (s32[], f32[{ROWS}], f32[{ROWS}])) -> (s32[], f32[{ROWS}], f32[{ROWS}]) {{
  %state = (s32[], f32[{ROWS}]{{0}}, f32[{ROWS}]{{0}}) parameter(0)
  %n = s32[]{{:S(4)}} get-tuple-element(%state), index=0
  %x = f32[{ROWS}]{{0}} get-tuple-element(%state), index=1
  %y = f32[{ROWS}]{{0}} get-tuple-element(%state), index=2
  %one = s32[]{{:S(4)}} constant(1)
  %next = s32[]{{:S(4)}} add(%n, %one)
  %first = f32[{ROWS}]{{0}} negate(%x), metadata={{op_name="jit(step)/layer/neg"}}
  %second = f32[{ROWS}]{{0}} negate(%y), metadata={{op_name="jit(step)/layer/neg"}}
  %third = f32[{ROWS}]{{0:S(1)}} exponential(%x), metadata={{op_name="jit(step)/layer/exp"}}
  ROOT %result = (s32[], f32[{ROWS}]{{0}}, f32[{ROWS}]{{0}}) tuple(%next, %first, %second)
}}

%condition (state.1: (s32[], f32[{ROWS}], f32[{ROWS}])) -> pred[] {{
  %state.1 = (s32[], f32[{ROWS}]{{0}}, f32[{ROWS}]{{0}}) parameter(0)
  %n.1 = s32[]{{:S(4)}} get-tuple-element(%state.1), index=0
  %bound = s32[]{{:S(4)}} constant({TRIPS})
  ROOT %less = pred[]{{:S(4)}} compare(%n.1, %bound), direction=LT
}}

ENTRY %main (p: f32[{ROWS}], q: bf16[10,{ROWS}]) -> bf16[10,{ROWS}] {{
  %p = f32[{ROWS}]{{0}} parameter(0)
  %q = bf16[10,{ROWS}]{{1,0}} parameter(1)
  %zero = s32[] constant(0)
  %begun = (s32[], f32[{ROWS}]{{0}}, f32[{ROWS}]{{0}}) tuple(%zero, %p, %p)
  %loop = (s32[], f32[{ROWS}]{{0}}, f32[{ROWS}]{{0}}) while(%begun), condition=%condition, body=%body
  ROOT %copied = bf16[10,{ROWS}]{{1,0}} copy(%q)
}}
"""


def test_the_largest_are_those_counted_by_hand():
    array, source = (f"f32[{ROWS}]",), "jit(step)/layer"
    assert hlo_largest.movers(PROGRAM) == [
        (
            ("first", "second"),
            "negate",
            array,
            f"{source}/neg",
            2 * TRIPS,
            2 * TRIPS * 2 * 4 * ROWS,
        ),
        (("copied",), "copy", (f"bf16[10,{ROWS}]",), "", 1, 2 * 2 * 10 * ROWS),
        (("third",), "exponential", array, f"{source}/exp", TRIPS, TRIPS * 4 * ROWS),
    ]


@pytest.mark.parametrize("name", ["scan.hlo.txt", "step.hlo.txt"])
def test_the_instructions_add_up_to_the_program(name):
    text = (pathlib.Path(__file__).parent / name).read_text()
    found = hlo_largest.movers(text)
    assert sum(m.hbm_bytes for m in found) == pytest.approx(hlo.read(text).hbm_bytes, rel=1e-12)
    assert [m.hbm_bytes for m in found] == sorted((m.hbm_bytes for m in found), reverse=True)


def test_the_table_has_the_largest_and_what_is_left():
    header, first, others, total = hlo_largest.table(PROGRAM, 1)
    assert "negate" in first and f"f32[{ROWS}]" in first and "jit(step)/layer/neg" in first
    assert others.endswith(" 2 others")
    shares = [float(line.split()[0]) for line in (first, others, total)]
    assert shares[0] + shares[1] == pytest.approx(shares[2], abs=0.011)
    assert header.split()[0] == "GB"


def test_a_pallas_kernel_has_its_own_name():
    text = (pathlib.Path(__file__).parent / "step.hlo.txt").read_text()
    text = text.replace("%kernel.7 = f32[32,32]{1,0:S(1)}", "%kernel.7 = f32[32,32]{1,0}")
    text = text.replace(
        'custom_call_target="tpu_custom_call"',
        'custom_call_target="tpu_custom_call", backend_config={kernel_name = "scaled"}',
    )
    kernel = next(m for m in hlo_largest.movers(text) if m.names == ("kernel.7",))
    assert (kernel.opcode, kernel.executions) == ("scaled", 5)
    assert kernel.hbm_bytes == 5 * 4 * 32**2

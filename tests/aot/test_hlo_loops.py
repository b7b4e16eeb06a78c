"""Lengths of loops, from the start, the bound and the step of their counters."""

import random

import pytest

from hybridlm.aot import hlo

# A ring: each iteration sends 1,024 bytes on. {bound} and {step} are instructions.
LOOP = """
%advance (a: s32[], b: s32[]) -> s32[] {{
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  %half = s32[] add(%a, %b)
  ROOT %whole = s32[] add(%half, %b)
}}

%compared (c: s32[], d: s32[]) -> pred[] {{
  %c = s32[] parameter(0)
  %d = s32[] parameter(1)
  ROOT %holds = pred[] compare(%c, %d), direction={direction}
}}

%body (state: (f32[256], s32[], s32[])) -> (f32[256], s32[], s32[]) {{
  %state = (f32[256]{{0}}, s32[], s32[]) parameter(0)
  %x = f32[256]{{0}} get-tuple-element(%state), index=0
  %n = s32[] get-tuple-element(%state), index=1
  %limit = s32[] get-tuple-element(%state), index=2
  %unit = s32[] constant({step})
  %old = s32[] copy(%n)
  %next = s32[] {advance}(%old, %unit){called}
  %sent = f32[256]{{0}} collective-permute(%x), channel_id=1, source_target_pairs={{{{0,1}},{{1,0}}}}
  ROOT %result = (f32[256]{{0}}, s32[], s32[]) tuple(%sent, %next, %limit)
}}

%condition (state.1: (f32[256], s32[], s32[])) -> pred[] {{
  %state.1 = (f32[256]{{0}}, s32[], s32[]) parameter(0)
  %n.1 = s32[] get-tuple-element(%state.1), index=1
  %constant.1 = s32[] constant({bound})
  %limit.1 = s32[] get-tuple-element(%state.1), index=2
  ROOT %less = pred[] fusion(%n.1, %{limit}), kind=kLoop, calls=%compared
}}

ENTRY %main (p: f32[256]) -> f32[256] {{
  %p = f32[256]{{0}} parameter(0)
  %start = s32[] constant({start})
  %bound = s32[] constant({bound})
  %begin = (f32[256]{{0}}, s32[], s32[]) tuple(%p, %start, %bound)
  %loop = (f32[256]{{0}}, s32[], s32[]) while(%begin), condition=%condition, body=%body
  ROOT %y = f32[256]{{0}} get-tuple-element(%loop), index=0
}}
"""
STEP = dict(advance="add", called="")
UNROLLED = dict(advance="fusion", called=", kind=kLoop, calls=%advance")


def program(start=0, bound=8, step=1, direction="LT", limit="constant.1", **words):
    return LOOP.format(
        start=start, bound=bound, step=step, direction=direction, limit=limit, **STEP | words
    )


def executions(text):
    cost = hlo.read(text)
    assert cost.unknown_loops == 0
    sent = cost.collectives["collective-permute"]
    assert sent.payload == sent.count * 1024
    return sent.count


def test_a_loop_that_xla_unrolled_by_two():
    """A ring of a windowed einsum: bound 8, step 2, 4 iterations."""
    assert executions(program(bound=8, step=2)) == 4


@pytest.mark.parametrize("limit", ["constant.1", "limit.1"], ids=["constant", "in the state"])
@pytest.mark.parametrize("direction", ["LT", "LE", "GT", "GE", "NE"])
def test_any_start_bound_and_step(direction, limit):
    draw = random.Random(f"{direction} {limit}")
    for _ in range(5):
        start, step = draw.randint(-9, 9), draw.randint(1, 5)
        bound = start + (step if direction == "NE" else 1) * draw.randint(0, 20)
        if direction.startswith("G"):
            start, bound, step = -start, -bound, -step
        past = {"LE": 1, "GE": -1}.get(direction, 0)
        found = executions(program(start, bound, step, direction, limit))
        assert found == len(range(start, bound + past, step)), (start, bound, step)


def test_a_step_inside_a_fusion():
    """The fusion adds its operand twice."""
    assert executions(program(bound=24, step=3, **UNROLLED)) == 4


@pytest.mark.parametrize(
    "change",
    [
        ("constant(0)", "parameter(1)"),  # the start
        ("add(%old, %unit)", "multiply(%old, %unit)"),
        ("direction=LT", "direction=EQ"),
        ("copy(%n)", "copy(%limit)"),  # the counter becomes another element
    ],
    ids=["start", "step", "comparison", "counter"],
)
def test_what_cannot_be_told_counts_once(change):
    cost = hlo.read(program().replace(*change))
    assert (cost.unknown_loops, cost.collectives["collective-permute"].count) == (1, 1)


def test_a_length_that_xla_states():
    stated = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    assert executions(program(start=1, bound=3).replace("body=%body", stated)) == 7


def test_a_loop_in_a_loop():
    """The inner loop's bound travels through the outer loop's state."""
    outer = """
%outer_body (o: (f32[256], s32[], s32[])) -> (f32[256], s32[], s32[]) {
  %o = (f32[256]{0}, s32[], s32[]) parameter(0)
  %ox = f32[256]{0} get-tuple-element(%o), index=0
  %on = s32[] get-tuple-element(%o), index=1
  %olimit = s32[] get-tuple-element(%o), index=2
  %zero = s32[] constant(0)
  %one = s32[] constant(1)
  %inner = (f32[256]{0}, s32[], s32[]) tuple(%ox, %zero, %olimit)
  %ran = (f32[256]{0}, s32[], s32[]) while(%inner), condition=%condition, body=%body
  %oy = f32[256]{0} get-tuple-element(%ran), index=0
  %onext = s32[] add(%on, %one)
  ROOT %oresult = (f32[256]{0}, s32[], s32[]) tuple(%oy, %onext, %olimit)
}

ENTRY"""
    text = program(bound=6, step=2, limit="limit.1")
    head, _, main = text.rpartition("ENTRY")
    assert executions(head + outer + main.replace("body=%body", "body=%outer_body")) == 6 * 3

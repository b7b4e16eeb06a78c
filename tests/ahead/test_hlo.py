"""What a compiled program's text says, read from small programs of both compilers' kinds."""

import pytest

from hybridlm.ahead import hlo

# As TPUs' programs look: memory spaces, a loop that counts to 5, a collective carried on by
# fusions, a reduce-scatter as a fusion, a batched product as a dilated convolution.
TPU = """
HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%begin.1 (p: bf16[64,128]) -> (bf16[64,128], bf16[256,128]) {
  %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[256,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=1, replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, dimensions={0}
  ROOT %start = (bf16[64,128]{1,0}, bf16[256,128]{1,0:S(1)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (q: bf16[64,128]) -> bf16[256,128] {
  %q = bf16[64,128]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[256,128]{1,0:S(1)} all-gather(%q), channel_id=1, replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, dimensions={0}
}

%all-reduce-scatter.1 (r: f32[16,8]) -> f32[4,8] {
  %r = f32[16,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %all-reduce.1 = f32[16,8]{1,0} all-reduce(%r), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %part = f32[4,8]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={4,8}
}

%layer (w: f32[5,32,32], i: s32[]) -> f32[32,32] {
  %w = f32[5,32,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %slice = f32[1,32,32]{2,1,0} dynamic-slice(%w, %i, %zero.1, %zero.1), dynamic_slice_sizes={1,32,32}
  ROOT %flat = f32[32,32]{1,0:S(1)} bitcast(%slice)
}

%body (state: (s32[], f32[5,32,32])) -> (s32[], f32[5,32,32]) {
  %state = (s32[]{:T(128)}, f32[5,32,32]{2,1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%state), index=0
  %all = f32[5,32,32]{2,1,0} get-tuple-element(%state), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:S(4)} add(%n, %one)
  %weights = f32[32,32]{1,0:S(1)} fusion(%all, %n), kind=kLoop, calls=%layer
  %product = f32[32,32]{1,0:S(1)} dot(%weights, %weights), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %kernel.7 = f32[32,32]{1,0:S(1)} custom-call(%product), custom_call_target="tpu_custom_call"
  %permuted = f32[32,32]{1,0:S(1)} collective-permute(%kernel.7), channel_id=3, source_target_pairs={{0,1},{1,0}}
  ROOT %result = (s32[]{:T(128)}, f32[5,32,32]{2,1,0}) tuple(%next, %all)
}

%condition (state.1: (s32[], f32[5,32,32])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  %state.1 = (s32[]{:T(128)}, f32[5,32,32]{2,1,0}) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%n.1, %bound), direction=LT
}

ENTRY %main (x: bf16[64,128], y: f32[16,8], z: (s32[], f32[5,32,32]), l: f32[4,2,64,32], m: f32[4,2,32,16]) -> f32[4,8] {
  %x = bf16[64,128]{1,0} parameter(0)
  %y = f32[16,8]{1,0} parameter(1)
  %z = (s32[]{:T(128)}, f32[5,32,32]{2,1,0}) parameter(2)
  %l = f32[4,2,64,32]{3,2,1,0} parameter(3)
  %m = f32[4,2,32,16]{3,2,1,0} parameter(4)
  %started = (bf16[64,128]{1,0}, bf16[256,128]{1,0:S(1)}) fusion(%x), kind=kOutput, calls=%begin.1
  %carried = bf16[256,128]{1,0:S(1)} fusion(%x), kind=kOutput, calls=%async_collective_fusion.1
  %loop = (s32[]{:T(128)}, f32[5,32,32]{2,1,0}) while(%z), condition=%condition, body=%body
  %batched = f32[4,2,64,16]{3,2,1,0:S(1)} convolution(%l, %m), window={size=4x2 stride=3x1 lhs_dilate=4x2}, dim_labels=01bf_01io->01bf
  ROOT %scattered = f32[4,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_loops_count_as_often_as_they_run():
    program = hlo.read(TPU)
    batched = 2 * 4 * 2 * 64 * 32 * 16
    assert program.flops == batched + 5 * 2 * 32**3
    assert program.kernels == {"kernel": 5}
    assert program.unknown_loops == 0


def test_collectives_count_where_they_begin():
    found = hlo.read(TPU).collectives
    assert set(found) == {"all-gather", "reduce-scatter", "collective-permute"}
    gathered = 2 * 256 * 128
    assert found["all-gather"] == (1, 1, gathered, gathered * 3 / 4)
    assert found["reduce-scatter"] == (1, 1, 4 * 16 * 8, 4 * 16 * 8 * 3 / 4)
    assert found["collective-permute"] == (1, 5, 5 * 4 * 32**2, 5 * 4 * 32**2)


def test_traffic_is_of_slices():
    """Of stacked layers each turn of the loop reads one, however many there are."""
    assert hlo.read(TPU).hbm_bytes == hlo.read(TPU.replace("[5,32,32]", "[5000,32,32]")).hbm_bytes


def test_traffic_is_of_hbm():
    """What lies in on-chip memory, S(1), is none; in HBM it is written once and read once."""
    product = "%product = f32[32,32]{1,0:S(1)}"
    in_hbm = TPU.replace(product, product.replace(":S(1)", ""))
    assert hlo.read(in_hbm).hbm_bytes - hlo.read(TPU).hbm_bytes == 5 * 2 * 4 * 32**2


def test_an_all_reduce_sends_twice():
    text = TPU.replace("%all-reduce-scatter.1", "%sum_of_chips.1").replace(
        "calls=%sum_of_chips.1", "to_apply=%sum_of_chips.1"
    )
    text = text.replace("fusion(%y), kind=kCustom, to_apply", "call(%y), to_apply")
    payload = 4 * 16 * 8
    assert hlo.read(text).collectives["all-reduce"] == (1, 1, payload, 2 * payload * 3 / 4)


def test_a_loop_of_unknown_length_is_said():
    program = hlo.read(TPU.replace("%bound = s32[]{:T(128)} constant(5)", "").replace(
        "compare(%n.1, %bound)", "compare(%n.1, %n.1)"))  # fmt: skip
    assert (program.unknown_loops, program.kernels) == (1, {"kernel": 1})


@pytest.mark.parametrize(
    "groups, size",
    [
        ("replica_groups={{0,1,2,3}}", 4),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", 2),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=mesh['axis_0'=16] {'axis_0'}", 16),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data','fsdp'}", 8),
        ("replica_groups=mesh['axis_0'=16] {'axis_0':(1)4}", 4),
    ],
)
def test_group_sizes(groups, size):
    assert hlo.group_size(groups) == size

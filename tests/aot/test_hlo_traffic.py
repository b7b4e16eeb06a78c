"""HBM bytes of slices, updates, nested fusions and overlapped collectives."""

import pathlib
import random

import jax
import jax.numpy as jnp
import pytest

from hybridlm.aot import hlo

# What libtpu made of the gradient of sum(h_L^2), h_(i+1) = tanh(h_i w_i) in bfloat16 with float32
# weights: scans over stacked arrays, sliced by fusions in fusions and updated in place.
SCAN = (pathlib.Path(__file__).parent / "scan.hlo.txt").read_text()
STACK = 2 * 4096  # bytes of a row of 4,096 bfloat16


def test_a_matrix_product_counted_by_hand():
    draw = random.Random(0)
    m, k, n = (draw.randint(20, 90) for _ in range(3))
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((m, k), (k, n))]
    cost = hlo.read(jax.jit(jnp.dot).lower(*shapes).compile().as_text())
    assert cost.flops == 2 * m * k * n
    assert cost.hbm_bytes == 4 * (m * k + k * n + m * n)


def test_a_scan_over_stacked_arrays_counted_by_hand():
    layers, rows, width = 12, 8192, 2048
    hidden, weights = 2 * layers * rows * width, 4 * layers * width * width
    bf16_weights = weights / 2
    ends = 2 * 2 * rows * width  # x in, by slices of it into on-chip memory; its gradient out
    cast = weights + bf16_weights
    forward = bf16_weights + hidden
    zeros = weights  # of the weights' gradient, which the loop updates
    # Hidden states and weights are read; the gradient before each tanh is written and read twice.
    backward = hidden + bf16_weights + 3 * hidden + weights
    cost = hlo.read(SCAN)
    assert cost.flops == 4 * 2 * layers * rows * width**2
    assert cost.hbm_bytes == pytest.approx(ends + cast + forward + zeros + backward, rel=1e-6)


def fusion(inner: str, operand: str, result: str, outer: str = "") -> float:
    """HBM bytes of a fusion of %p and %n (s32[])."""
    return hlo.read(f"""
%sum (l: bf16[], r: bf16[]) -> bf16[] {{
  %l = bf16[] parameter(0)
  %r = bf16[] parameter(1)
  ROOT %both = bf16[] add(%l, %r)
}}

%nested (a: {operand}, b: s32[]) -> {result} {{
  %a = {operand} parameter(0)
  %b = s32[] parameter(1)
  %zero = s32[] constant(0)
  {inner}
}}

%fused (c: {operand}, d: s32[]) -> {result} {{
  %c = {operand} parameter(0)
  %d = s32[] parameter(1)
  {outer or f"ROOT %e = {result} fusion(%c, %d), kind=kLoop, calls=%nested"}
}}

ENTRY %main (p: {operand}, n: s32[]) -> {result} {{
  %p = {operand} parameter(0)
  %n = s32[]{{:S(6)}} parameter(1)
  ROOT %y = {result} fusion(%p, %n), kind=kLoop, calls=%fused
}}
""").hbm_bytes


@pytest.mark.parametrize(
    "before",
    [
        "",
        "%s = bf16[{n},4096]{{1,0}} copy(%a)",
        "%s = f32[{n},4096]{{1,0}} convert(%a)",
        "%s = bf16[{m},4096]{{1,0}} pad(%a, %zero), padding=0_1x0_0",
    ],
    ids=["as it is", "copied", "converted", "padded"],
)
@pytest.mark.parametrize("layers", [3, 500])
def test_what_a_nested_fusion_slices_counts_by_its_slice(before, layers):
    """Two rows of the operand are read and written, whatever its number of rows."""
    before = before.format(n=layers, m=layers + 1)
    dtype = "f32" if "f32" in before else "bf16"
    source = "%s" if before else "%a"
    inner = before + (
        f"\n  ROOT %t = {dtype}[2,4096]{{1,0:S(1)}} dynamic-slice({source}, %b, %zero),"
        " dynamic_slice_sizes={2,4096}"
    )
    result = f"{dtype}[2,4096]{{1,0:S(1)}}"
    assert fusion(inner, f"bf16[{layers},4096]{{1,0}}", result) == 2 * STACK


def test_an_operand_that_is_sliced_and_used_counts_whole():
    inner = """%t = bf16[1,4096]{1,0} dynamic-slice(%a, %b, %zero), dynamic_slice_sizes={1,4096}
  %r = bf16[9,4096]{1,0} broadcast(%t), dimensions={0,1}
  ROOT %u = bf16[9,4096]{1,0:S(1)} add(%r, %a)"""
    assert fusion(inner, "bf16[9,4096]{1,0}", "bf16[9,4096]{1,0:S(1)}") == 9 * STACK


def test_a_reduced_operand_counts_whole():
    inner = """%z = bf16[] constant(0)
  %t = bf16[4096]{0} reduce(%a, %z), dimensions={0}, to_apply=%sum
  ROOT %u = bf16[8]{0:S(1)} slice(%t), slice={[0:8]}"""
    assert fusion(inner, "bf16[9,4096]{1,0}", "bf16[8]{0:S(1)}") == 9 * STACK


UPDATE = """%v = bf16[1,4096]{{1,0}} constant({{...}})
  ROOT %u = bf16[{n},4096]{{1,0}} dynamic-update-slice({base}, %v, %b, %zero)"""


@pytest.mark.parametrize("layers", [3, 500])
def test_an_update_in_place_counts_by_its_part(layers):
    shape = f"bf16[{layers},4096]{{1,0}}"
    assert fusion(UPDATE.format(n=layers, base="%a"), shape, shape) == STACK


def test_an_update_of_a_computed_array_counts_whole():
    """It is read, and all of the result is written."""
    inner = "%m = bf16[7,4096]{1,0} negate(%a)\n  " + UPDATE.format(n=7, base="%m")
    assert fusion(inner, "bf16[7,4096]{1,0}", "bf16[7,4096]{1,0}") == 2 * 7 * STACK


def test_an_update_that_is_reduced_again_reads_its_base():
    inner = UPDATE.format(n=7, base="%a").replace("ROOT ", "") + (
        "\n  %z = bf16[] constant(0)"
        "\n  ROOT %r = bf16[4096]{0:S(1)} reduce(%u, %z), dimensions={0}, to_apply=%sum"
    )
    assert fusion(inner, "bf16[7,4096]{1,0}", "bf16[4096]{0:S(1)}") == 7 * STACK


@pytest.mark.parametrize("place, times", [(":S(1)", 1), ("", 2)], ids=["on chip", "in HBM"])
def test_a_slice_that_starts_counts_the_slice(place, times):
    part = f"bf16[3,4096]{{1,0{place}}}"
    cost = hlo.read(f"""
ENTRY %main (p: bf16[90,4096]) -> bf16[3,4096] {{
  %p = bf16[90,4096]{{1,0}} parameter(0)
  %begun = ((bf16[90,4096]{{1,0}}), {part}, s32[]{{:S(2)}}) slice-start(%p), slice={{[6:9], [0:4096]}}
  ROOT %done = {part} slice-done(%begun)
}}
""")
    assert cost.hbm_bytes == times * 3 * STACK


def test_an_array_that_a_kernel_takes_twice_counts_once():
    """As a convolution's: blocks of tokens, and those of the tokens before each block."""
    cost = hlo.read("""
ENTRY %main (p: bf16[90,4096], q: bf16[7,4096]) -> bf16[3,4096] {
  %p = bf16[90,4096]{1,0} parameter(0)
  %q = bf16[7,4096]{1,0} parameter(1)
  ROOT %k = bf16[3,4096]{1,0} custom-call(%p, %p, %q), custom_call_target="tpu_custom_call"
}
""")
    assert cost.hbm_bytes == (90 + 7 + 3) * STACK


def test_an_overlapped_gather_counts_once():
    """Its shard is read and its result written, by three fusions that also carry the buffers."""
    semaphore = "u32[]{:S(2)}"
    whole, part = "bf16[256,4096]{1,0}", "bf16[64,4096]{1,0}"
    gather = (
        f"{whole} all-gather(%s), channel_id=1, replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}"
    )
    state = f"({part}, {whole}, {semaphore})"
    text = f"""
%begin (s: {part}) -> {state} {{
  %s = {part} parameter(0)
  %gather = {gather}
  ROOT %start = {state} custom-call(%gather), custom_call_target="AsyncCollectiveStart"
}}

%overlapped (s: {part}, w: {whole}, m: {semaphore}, x: f32[8]) -> (f32[8], {part}, {whole}, {whole}, {semaphore}) {{
  %s = {part} parameter(0)
  %w = {whole} parameter(1)
  %m = {semaphore} parameter(2)
  %x = f32[8]{{0}} parameter(3)
  %twice = f32[8]{{0}} add(%x, %x)
  %gather = {gather}
  ROOT %all = (f32[8]{{0}}, {part}, {whole}, {whole}, {semaphore}) tuple(%twice, %s, %w, %gather, %m)
}}

%end (s: {part}, w: {whole}, m: {semaphore}) -> {whole} {{
  %s = {part} parameter(0)
  %w = {whole} parameter(1)
  %m = {semaphore} parameter(2)
  %gather = {gather}
  ROOT %finish = {whole} custom-call(%s, %w, %gather, %m), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (p: {part}, q: f32[8]) -> {whole} {{
  %p = {part} parameter(0)
  %q = f32[8]{{0}} parameter(1)
  %a = {state} fusion(%p), kind=kCustom, output_to_operand_aliasing={{{{0}}: (0, {{}})}}, calls=%begin
  %a0 = {part} get-tuple-element(%a), index=0
  %a1 = {whole} get-tuple-element(%a), index=1
  %a2 = {semaphore} get-tuple-element(%a), index=2
  %b = (f32[8]{{0}}, {part}, {whole}, {whole}, {semaphore}) fusion(%a0, %a1, %a2, %q), kind=kOutput, calls=%overlapped
  %b1 = {part} get-tuple-element(%b), index=1
  %b2 = {whole} get-tuple-element(%b), index=2
  %b4 = {semaphore} get-tuple-element(%b), index=4
  ROOT %c = {whole} fusion(%b1, %b2, %b4), kind=kCustom, calls=%end
}}
"""
    cost = hlo.read(text)
    assert cost.collectives["all-gather"].count == 1
    assert cost.hbm_bytes == (64 + 256) * STACK + 2 * 4 * 8

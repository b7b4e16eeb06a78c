"""The costs read from the text of a small compiled program."""

import pathlib

import pytest

from hybridlm.aot import hlo

# Like a TPU program: memory spaces, a loop that counts to 5, a collective continued by fusions, a
# reduce-scatter as a fusion, and a batched product as a dilated convolution.
TPU = (pathlib.Path(__file__).parent / "step.hlo.txt").read_text()


def test_a_loops_body_counts_once_per_iteration():
    program = hlo.read(TPU)
    batched = 2 * 4 * 2 * 64 * 32 * 16
    assert program.flops == batched + 5 * 2 * 32**3
    assert program.kernels == {"kernel": 5}
    assert program.unknown_loops == 0


def test_a_collective_counts_at_its_start():
    found = hlo.read(TPU).collectives
    assert set(found) == {"all-gather", "reduce-scatter", "collective-permute"}
    gathered = 2 * 256 * 128
    assert found["all-gather"] == (1, 1, gathered, gathered * 3 / 4, gathered * 3 / 4)
    assert found["reduce-scatter"] == (1, 1, 4 * 16 * 8, 4 * 16 * 8 * 3 / 4, 0)
    assert found["collective-permute"] == (1, 5, 5 * 4 * 32**2, 5 * 4 * 32**2, 0)


@pytest.mark.parametrize(
    "between, overlapped",
    [
        ("%kernel.7", True),
        ("", False),
        ("%named = f32[32,32]{1,0:S(1)} bitcast(%product)", False),
        ("%moved = f32[32,32]{1,0} copy(%product)", True),
        ("%other = f32[32,32]{1,0:S(1)} dot(%product, %product), lhs_contracting_dims={1}", True),
    ],
)
def test_a_collective_overlaps_with_work_between_its_start_and_its_end(between, overlapped):
    kernel = next(line for line in TPU.splitlines() if line.startswith("  %kernel.7"))
    permute = next(line for line in TPU.splitlines() if line.startswith("  %permuted"))
    shape = "f32[32,32]{1,0:S(1)}"
    rest = permute.split("(%kernel.7)")[1]
    pair = [
        f"  %begin = ({shape}, {shape}) collective-permute-start(%product){rest}",
        kernel if between == "%kernel.7" else f"  {between}",
        f"  %permuted = {shape} collective-permute-done(%begin)",
    ]
    text = TPU.replace(kernel + "\n", "").replace(permute, "\n".join(pair))
    sent = 5 * 4 * 32**2
    found = hlo.read(text).collectives["collective-permute"]
    assert (found.sent, found.overlapped) == (sent, sent if overlapped else 0)


def test_an_all_reduce_overlaps_with_work_between_its_start_and_its_end():
    """It names the function that it applies, which is not what it starts."""
    permute = next(line for line in TPU.splitlines() if line.startswith("  %permuted"))
    shape = "f32[32,32]{1,0:S(1)}"
    groups = "replica_groups={{0,1,2,3}}, to_apply=%add"
    lines = [
        f"  %begin = {shape} all-reduce-start(%product), channel_id=9, {groups}",
        f"  %other = {shape} dot(%product, %product), lhs_contracting_dims={{1}}",
        f"  %permuted = {shape} all-reduce-done(%begin)",
    ]
    found = hlo.read(TPU.replace(permute, "\n".join(lines))).collectives["all-reduce"]
    assert found.sent == found.overlapped == 5 * 2 * 4 * 32**2 * 3 / 4


START = {
    "GPU": ["  %begins = ((f32[16,8]), f32[4,8]) async-start(%y), calls=%reduces"],
    "SparseCore": [
        "  %first.call = ((), (), s32[]{:S(2)}) call-start(), to_apply=%reduces",
        "  %begins = ((f32[16,8]), f32[4,8]) call-update(%first.call, %y)",
    ],
}


@pytest.mark.parametrize("kind, end", [("GPU", "async-done"), ("SparseCore", "call-done")])
def test_a_collective_that_a_start_calls_overlaps_with_work_before_its_end(kind, end):
    """It counts once, and a SparseCore's begins when it gets its operands."""
    called = """
%reduces (r: f32[16,8]) -> f32[4,8] {
  %r = f32[16,8]{1,0} parameter(0)
  ROOT %scatter = f32[4,8]{1,0} reduce-scatter(%r), replica_groups={{0,1,2,3}}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY """
    fusion = next(line for line in TPU.splitlines() if line.startswith("  ROOT %scattered"))
    batched = next(line for line in TPU.splitlines() if line.startswith("  %batched"))
    text = TPU.replace("ENTRY ", called.lstrip("\n"), 1)
    text = text.replace(fusion, f"  ROOT %scattered = f32[4,8]{{1,0}} {end}(%begins)")
    start = START[kind]
    orders = [
        ([*start, batched], 1),
        ([batched, *start], 0),
        ([*start[:-1], batched, start[-1]], 0),
    ]
    for lines, overlapped in orders:
        program = hlo.read(text.replace(batched, "\n".join(lines)))
        found = program.collectives["reduce-scatter"]
        assert (found.sent, found.overlapped) == (4 * 16 * 8 * 3 / 4, overlapped * found.sent)
        assert program.hbm_bytes == hlo.read(TPU).hbm_bytes  # as those of the fusion


def test_a_slice_counts_as_its_own_size():
    """An iteration reads one of the stacked layers, whatever their number."""
    assert hlo.read(TPU).hbm_bytes == hlo.read(TPU.replace("[5,32,32]", "[5000,32,32]")).hbm_bytes


def test_on_chip_memory_is_not_counted():
    """A result in on-chip memory, S(1), has no traffic; in HBM it is written and read once."""
    product = "%product = f32[32,32]{1,0:S(1)}"
    in_hbm = TPU.replace(product, product.replace(":S(1)", ""))
    assert hlo.read(in_hbm).hbm_bytes - hlo.read(TPU).hbm_bytes == 5 * 2 * 4 * 32**2


def test_an_all_reduce_sends_its_payload_twice():
    text = TPU.replace("%all-reduce-scatter.1", "%sum_of_chips.1").replace(
        "calls=%sum_of_chips.1", "to_apply=%sum_of_chips.1"
    )
    text = text.replace("fusion(%y), kind=kCustom, to_apply", "call(%y), to_apply")
    payload = 4 * 16 * 8
    assert hlo.read(text).collectives["all-reduce"] == (1, 1, payload, 2 * payload * 3 / 4, 0)


def test_a_loop_of_unknown_length_is_reported():
    program = hlo.read(
        TPU.replace("%bound = s32[]{:T(128)} constant(5)", "").replace(
            "compare(%n.1, %bound)", "compare(%n.1, %n.1)"
        )
    )
    assert (program.unknown_loops, program.kernels) == (1, {"kernel": 1})


def test_a_kernel_keeps_its_name_where_its_result_has_one():
    """XLA names the instruction of a kernel after the parameter of the next kernel, too."""
    text = TPU.replace("%kernel.7", "%kernel_2.7.v_ref")
    assert hlo.read(text).kernels == {"kernel_2": 5}


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

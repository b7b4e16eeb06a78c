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
    assert found["all-gather"] == (1, 1, gathered, gathered * 3 / 4)
    assert found["reduce-scatter"] == (1, 1, 4 * 16 * 8, 4 * 16 * 8 * 3 / 4)
    assert found["collective-permute"] == (1, 5, 5 * 4 * 32**2, 5 * 4 * 32**2)


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
    assert hlo.read(text).collectives["all-reduce"] == (1, 1, payload, 2 * payload * 3 / 4)


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

"""`auto` takes a kernel of a chip only where the table of measurements says so."""

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import dispatch, measured
from kernels_pallas.attention import attention
from kernels_pallas.dispatch import XLA_ONLY, Backend
from kernels_pallas.measured import ANY, EVERY_KERNEL, Row

CASE = dict(dtype="bfloat16", window=128, sinks=False, note=7)
LIMITS = dict.fromkeys(CASE, dispatch.ANY) | dict(platform=("gpu",), partitioned_over=())
SUPPORT = (*XLA_ONLY, Backend("hopper", "pallas", LIMITS, auto=False))
ROW = Row(
    "op",
    "hopper",
    "NVIDIA H200",
    dict(dtype="bfloat16", window={"from": 90, "to": 181}, sinks=False, note=ANY),
    (4096, 16384),
)


def taken(case=CASE, tokens=8192, chip="NVIDIA H200", op="op", rows=(ROW,), platform="gpu"):
    with measured.table(rows), dispatch.kernels_for(platform, chip=chip):
        return dispatch.resolve(op, "auto", case, SUPPORT, tokens)


def test_auto_takes_a_kernel_for_the_calls_of_a_row_and_for_no_other():
    assert taken() == taken(tokens=4096) == taken(tokens=16384) == "hopper"
    assert taken(CASE | dict(window=181, note="else")) == "hopper"
    others = dict(dtype="float32", window=182, sinks=True)
    assert {taken(CASE | {k: v}) for k, v in others.items()} == {"chunked"}
    assert taken(CASE | dict(window=None)) == taken(CASE | dict(window=True)) == "chunked"
    assert taken(tokens=4095) == taken(tokens=16385) == taken(tokens=None) == "chunked"
    assert taken(op="other") == taken(chip="NVIDIA H100") == taken(chip=None) == "chunked"
    assert taken(platform="tpu") == "chunked"


def test_a_feature_that_a_row_does_not_list_is_not_covered():
    case = {k: v for k, v in ROW.case.items() if k != "note"}
    assert taken(rows=(ROW._replace(case=case),)) == "chunked"


def test_every_kernel_is_a_table_too():
    assert taken(tokens=None, chip=None, op="other", rows=EVERY_KERNEL) == "hopper"


def test_a_table_survives_json(tmp_path):
    import json

    rows = (ROW, *EVERY_KERNEL)
    assert tuple(measured.of_json(json.loads(measured.to_json(rows)))) == rows
    assert json.loads(measured.to_json(())) == []


@pytest.mark.parametrize("window", [128, None])
def test_an_op_obeys_the_table(window):
    """The call of a real op is described by what `choices` recorded of it."""
    q = jax.ShapeDtypeStruct((1, 256, 4, 64), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)

    def backend(rows, tokens=(256, 256), chip="NVIDIA H200"):
        with measured.table(rows), dispatch.kernels_for("gpu", chip=chip):
            with dispatch.choices() as made:
                jax.eval_shape(lambda q, k, v: attention(q, k, v, window=window), q, kv, kv)
        return made[0]

    plain = backend(())
    assert (plain.op, plain.backend, plain.tokens) == ("attention", "chunked", 256)
    row = Row("attention", "hopper", "NVIDIA H200", plain.case, (256, 256))
    assert backend((row,)).backend == "hopper"
    assert backend((row._replace(tokens=(1, 255)),)).backend == "chunked"
    assert backend((row,), chip=None).backend == "chunked"


def test_the_committed_table_names_kernels_that_wait_for_it():
    """A row for a misspelt op, or for a kernel that `auto` takes anyway, would have no effect."""
    from kernels_pallas.aot.document import support_of

    for row in measured.committed():
        kernel = next(b for b in support_of(row.op) if b.name == row.backend)
        assert not kernel.auto and row.chip and set(row.case) <= set(kernel.limits)

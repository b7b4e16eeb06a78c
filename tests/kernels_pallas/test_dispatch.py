"""Dispatch is fail-closed: a kernel runs only cases that its row of the support table lists."""

import jax
import pytest

from kernels_pallas.dispatch import XLA_ONLY, Backend, kernels_for, resolve, target

LIMITS = dict(platform=("tpu",), dtype=("bfloat16",), key_size=(64, 128), window=range(1, 4097))
TABLE = (*XLA_ONLY, Backend("tpu", "pallas", LIMITS))
COVERED = dict(dtype="bfloat16", key_size=64, window=128)


@pytest.fixture(autouse=True)
def on_a_tpu():
    with kernels_for("tpu"):
        yield


def test_auto_takes_a_kernel_only_where_it_is_covered():
    assert resolve("op", "auto", COVERED, TABLE) == "tpu"
    assert resolve("op", "pallas", COVERED, TABLE) == "tpu"
    for key, value in dict(dtype="float32", key_size=80, window=None).items():
        assert resolve("op", "auto", COVERED | {key: value}, TABLE) == "chunked"


def test_auto_skips_a_kernel_that_is_not_measured_to_be_faster():
    slower = (*XLA_ONLY, Backend("tpu", "pallas", LIMITS, auto=False))
    assert resolve("op", "auto", COVERED, slower) == "chunked"
    assert resolve("op", "pallas", COVERED, slower) == "tpu"


def test_a_feature_the_row_does_not_mention_is_not_covered():
    assert resolve("op", "auto", COVERED | dict(sinks=True), TABLE) == "chunked"


def test_the_platform_is_part_of_every_case():
    with kernels_for("cpu"):
        assert resolve("op", "auto", COVERED, TABLE) == "chunked"
        with pytest.raises(ValueError, match=r"platform in \('tpu',\).* lacks platform=cpu"):
            resolve("op", "pallas", COVERED, TABLE)
        with kernels_for("tpu", interpret=True):
            assert resolve("op", "auto", COVERED, TABLE) == "tpu"
            assert target() == ("tpu", True)
        assert target() == ("cpu", False)


def test_no_kernel_where_xla_would_have_to_partition_it():
    auto, manual = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Manual
    for size, kind, form in ((2, auto, "chunked"), (1, auto, "tpu"), (2, manual, "tpu")):
        mesh = jax.sharding.AbstractMesh((size, 1), ("data", "tensor"), axis_types=(kind, auto))
        with jax.sharding.use_abstract_mesh(mesh):
            assert resolve("op", "auto", COVERED, TABLE) == form
            if form == "chunked":
                with pytest.raises(ValueError, match="lacks partitioned_over=data 2"):
                    resolve("op", "pallas", COVERED, TABLE)


def test_named_forms_are_taken_as_named():
    assert resolve("op", "reference", COVERED, TABLE) == "reference"
    assert resolve("op", "chunked", COVERED, TABLE) == "chunked"


def test_an_unsupported_call_by_name_lists_what_is_supported():
    with pytest.raises(ValueError, match=r"key_size in \(64, 128\).* lacks key_size=80"):
        resolve("op", "pallas", COVERED | dict(key_size=80), TABLE)
    with pytest.raises(ValueError, match="has no kernel"):
        resolve("op", "pallas", COVERED)


def test_unknown_impl():
    with pytest.raises(ValueError, match="impl must be one of auto, reference, chunked, pallas"):
        resolve("op", "cuda", COVERED, TABLE)

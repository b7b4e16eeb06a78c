"""The report of a compiled step: whether it fits, which changes help, and bounds on its time."""

import dataclasses

import pytest

from hybridlm import config as configs
from hybridlm.aot import hlo, measure, remedies, report, topology

GIB = 2**30
TARGET = topology.CompileTarget("v5e:2x2", "v5e", [None] * 4, 16 * GIB, 197e12, 819e9, 200e9)
MESSAGE = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries"
    " (30.34G) exceeds available HBM (15.75G). HLO module: jit_train_step."
)


@pytest.fixture
def config(in_root):
    return configs.load("configs/demo.py:smoke", [("data.batch_size", "32")])


def compiled(total: float) -> measure.Compiled:
    memory = measure.Memory(1.0 * GIB, 2.0 * GIB, 0.0, 0.0, total - 3 * GIB, 0.0, 0.0)
    sent = hlo.Collective(static=2, count=12, payload=100e9, sent=75e9, overlapped=50e9)
    program = hlo.ProgramCost(197e12, 8.19e9, {"all-gather": sent}, {"delta_rule": 6}, 0)
    roofline = measure.Roofline(1.0, 0.01, 0.375)
    return measure.Compiled(None, None, memory, program, roofline, 4 * 98.5e12, 1.0, 2.0)


def test_the_report_of_a_step_that_fits(config):
    output = report.text(compiled(10 * GIB), config, TARGET)
    assert "10.00 GiB of 16.00 GiB (62%): it fits" in output
    assert "a step takes at least 1 s, for its matrix products" in output
    assert "MFU of 50%" in output and "delta_rule x 6" in output
    assert "69.85 GiB  46.57 GiB" in output  # sent, and sent beside other work
    figures = report.figures(compiled(10 * GIB), config, TARGET)
    assert figures["tokens_per_second_at_most"] == config.tokens_per_step
    assert figures["roofline"]["limit"] == "compute"


def test_the_report_of_a_step_that_does_not_fit(config):
    assert "IT DOES NOT FIT" in report.text(compiled(17 * GIB), config, TARGET)
    rejected = measure.too_large(MESSAGE, 2.0 * GIB, 60.0)
    assert rejected.total == pytest.approx(32.34 * GIB)
    output = report.text(rejected, config, TARGET)
    assert "IT DOES NOT FIT" in output.upper() and "32.34 GiB" in output and "15.75 GiB" in output


def test_the_compilers_other_message_includes_the_state():
    message = "RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm. Exceeds hbm capacity by 4.25G."
    assert measure.too_large(message, 2.0 * GIB, 1.0).total == 20 * GIB
    assert measure.too_large("RESOURCE_EXHAUSTED: HBM", 2.0 * GIB, 1.0).total is None


def test_changes_save_memory_and_keep_the_batch(config):
    """A batch of 32 on 4 chips is 8 sequences per chip; 8 micro-batches make it one."""
    last = {"train.remat": "full", "mesh.data": 1, "mesh.fsdp": 4, "train.accumulate": 8}
    assert list(remedies.changes(config, 4)) == [
        {"train.remat": "dots"},
        {"train.remat": "full"},
        {"mesh.data": 1, "mesh.fsdp": 4},
        {"train.accumulate": 8},
        last,
    ]
    layer_by_layer = remedies.apply(config, last)
    assert list(remedies.changes(layer_by_layer, 4)) == []  # as its pattern is not repeated
    repeated = {"model.depth": 2 * len(config.model.layout.layers)}
    deeper = remedies.apply(layer_by_layer, repeated)
    assert list(remedies.changes(deeper, 4)) == [{"train.remat": "unit"}]
    assert remedies.overrides({"mesh.data": 1}) == "--config.mesh.data=1"


def test_all_changes_together_are_tried_only_if_none_alone_fits(config):
    def compile_step(changed, _):
        small = dataclasses.asdict(changed.mesh)["fsdp"] == 4
        return compiled((10 if small else 17) * GIB)

    def fits(result):
        return report.fits(result, TARGET)

    tried = remedies.search(config, TARGET, fits, compile_step, lambda _: None)
    assert [fits(result) for _, result in tried] == [False, False, True, False]
    none = remedies.search(config, TARGET, lambda _: False, compile_step, lambda _: None)
    assert len(none) == 5
    output = report.remedy_text(tried, config, TARGET)
    assert "--config.mesh.data=1 --config.mesh.fsdp=4" in output and " fits, 10.00 GiB" in output
    nothing = report.remedy_text([], config, TARGET)
    assert "take more chips" in nothing

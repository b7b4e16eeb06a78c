"""MFU is against a data sheet's peak, and left out on a CPU; what a run says when it starts."""

import types

import jax
import pytest

from hybridlm.runs import metrics
from hybridlm.train.loop import train
from hybridlm.train.throughput import PEAKS, peak_flops
from tests.train.stages import config


def test_no_peak_of_a_cpu_is_known():
    assert peak_flops(jax.devices("cpu")) == (None, "no peak of a CPU is known")


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H100 80GB HBM3", PEAKS["NVIDIA H100"]),
        ("TPU v5 lite", PEAKS["TPU v5 lite"]),
        ("TPU v5", PEAKS["TPU v5"]),
        ("AMD", None),
    ],
)
def test_the_peak_is_that_of_all_devices(kind, peak):
    found, source = peak_flops([types.SimpleNamespace(device_kind=kind, platform="x")] * 3)
    assert found == (peak and 3 * peak) and kind in source


def test_a_run_says_what_its_depth_leaves_of_the_pattern_and_nothing_of_mfu(
    tmp_path, in_root, capsys
):
    model = dict(depth=7, pattern="rec rec rec", tie_embeddings=True)
    assert train(config(model, steps=1), tmp_path) == 0
    said = capsys.readouterr().out
    left = "2 x (rec rec rec), then only 1 of these 3 layers (rec)"
    assert f"model.depth 7 leaves part of the pattern: {left}" in said
    records = metrics.read(tmp_path / metrics.FILE)
    assert {r["kind"] for r in records} == {"run", "train", "eval"}
    assert "MFU" not in said and not any("mfu" in key for r in records for key in r)

"""Every option of the trainer trains: a small demo with settings that its recipe does not use."""

import math

import pytest

from hybridlm import config as configs
from hybridlm.runs import metrics
from hybridlm.train.loop import train

VARIANTS = {
    "bfloat16, full remat, Muon, sandwich blocks, untied": [
        ("train.dtype", "bfloat16"),
        ("train.remat", "full"),
        ("optimizer.name", "muon"),
        ("model.block", "sandwich"),
        ("model.tie_embeddings", "False"),
    ],
    "dots remat, Adafactor, accumulation, WSD, parallel blocks": [
        ("train.remat", "dots"),
        ("optimizer.name", "adafactor"),
        ("train.accumulate", "2"),
        ("optimizer.schedule", "wsd"),
        ("optimizer.decay_steps", "3"),
        ("model.block", "parallel"),
        ("optimizer.lr", "0.01"),
    ],
    "best-fit packing, soft caps, sinks, gates, GeGLU, prefix and suffix": [
        ("data.packing", "best_fit"),
        ("model.logit_soft_cap", "30.0"),
        ("model.mlp.kind", "geglu"),
        ("model.mixers.swa.sinks", "True"),
        ("model.mixers.full.output_gate", "True"),
        ("model.mixers.full.soft_cap", "50.0"),
        ("model.prefix", "rec"),
        ("model.suffix", "full"),
        ("model.depth", "5"),
        ("train.spike_sigma", "6"),
    ],
    "a window of 1, odd lengths, one layer, attention across documents": [
        ("model.mixers.swa.window", "1"),
        ("data.seq_len", "61"),
        ("model.pattern", "swa"),
        ("model.depth", "1"),
        ("data.cross_document_attention", "True"),
        ("data.batch_size", "3"),
    ],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_falls(in_root, tmp_path, name):
    fixed = [("train.steps", "16"), ("train.eval_every", "16"), ("train.checkpoint_every", "16")]
    fixed += [("data.bigram_baseline", "False"), ("train.tensorboard", "False")]
    config = configs.load("configs/demo.py:smoke", fixed + VARIANTS[name])
    assert train(config, tmp_path) == 0
    records = metrics.read(tmp_path / metrics.FILE)
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.2, losses
    held_out = records[-1]
    assert held_out["kind"] == "eval" and held_out["loss"] < math.log(320)
    assert all(r["skipped"] == 0 for r in records if r["kind"] == "train")

"""A run with a moving average: resumed bit for bit, evaluated beside the parameters, opened."""

import json
import shutil

import jax
import numpy as np
import pytest

from hybridlm.data import open_pipeline
from hybridlm.evals.perplexity import evaluate, make_eval_step
from hybridlm.runs import checkpoint, metrics, open_model

WORDS = [
    "train",
    "--config=configs/demo.py:smoke",
    "--config.train.steps=6",
    "--config.train.eval_every=3",
    "--config.train.checkpoint_every=3",
    "--config.train.ema_decay=0.8",
    "--config.train.tensorboard=False",
    "--config.sample.tokens=0",
    "--config.data.bigram_baseline=False",
    "--config.optimizer.freeze=embedding|layers.0.mlp",
    "--config.optimizer.lr_multipliers=[{'parameters': '*.mixer', 'factor': 0.3}]",
    "--config.model.depth=6",
]


@pytest.mark.slow
def test_a_run_with_all_of_it_resumes_and_opens(tmp_path, in_root, command):
    def train(workdir):
        cache = f"--config.data.token_cache={tmp_path / 'tokens'}"
        code, said, err = command(*WORDS, "--workdir", workdir, cache)
        assert code == 0, err
        return said

    assert "of them trained" in train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")
    assert "resuming from step 3 of 6" in train(tmp_path / "cut")
    states = [checkpoint.load_numpy(tmp_path / name, 6)[1] for name in ("whole", "cut")]
    assert set(states[0]) >= {"params", "opt_state", "ema"}
    jax.tree.map(np.testing.assert_array_equal, *states)
    whole, cut = (metrics.read(tmp_path / name / metrics.FILE) for name in ("whole", "cut"))
    evals = [[r for r in records if r["kind"] == "eval"] for records in (whole, cut)]
    assert evals[0] == evals[1] and [r["step"] for r in evals[0]] == [3, 6]

    opened = open_model(tmp_path / "whole", weights="ema")
    pipeline = open_pipeline(opened.training_data(), seed=opened.seed, workdir=tmp_path / "whole")
    step = make_eval_step(opened.model, opened.tokenizer.token_bytes(), opened.dtype)
    settings = opened.settings
    batches = pipeline.heldout_batches(
        settings["data"]["batch_size"], settings["train"]["eval_sequences"]
    )
    found = evaluate(jax.jit(step), opened.params, batches)
    assert found["loss"] == pytest.approx(evals[0][-1]["ema_loss"], rel=1e-5)
    assert found["loss"] != pytest.approx(evals[0][-1]["loss"], rel=1e-4)

    hashes = {}
    for name in ("whole", "cut"):
        code, said, _ = command("inspect", tmp_path / name, "--parameters")
        hashes[name] = [line for line in said.splitlines() if "sha256" in line or "ema" in line]
        assert code == 0 and "heldout_ema_loss" in said and "frozen" in said
    assert hashes["whole"] == hashes["cut"]
    facts = json.loads((tmp_path / "whole" / metrics.FILE).read_text().splitlines()[0])
    assert 0 < facts["trained_parameters"] < facts["parameters"]
    prompt = ["--prompt", "My fellow", "--tokens", "5"]
    for weights in ("raw", "ema"):
        code, said, _ = command(
            "generate", "--workdir", tmp_path / "whole", "--weights", weights, *prompt
        )
        assert code == 0 and said.startswith("My fellow")

    average = ["average", tmp_path / "whole", "--last", "2", "--out", tmp_path / "average"]
    assert command(*average)[0] == 0
    task = ["--tasks", "perplexity", "--lengths", settings["data"]["seq_len"], "--samples", "4"]
    code, _, err = command(
        "eval", "--workdir", tmp_path / "average", *task, "--out", tmp_path / "evals"
    )
    assert code == 0, err
    (record,) = json.loads((tmp_path / "evals" / "eval.json").read_text())["records"]
    assert record["loss"] == pytest.approx(evals[0][-1]["loss"], abs=0.5)
    assert not (tmp_path / "average" / "tokens").exists()  # it reads the run's

"""Every command with `--out` writes into a bucket what it writes to a disk."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm import config
from hybridlm.config import to_dict
from hybridlm.models.params import Model
from hybridlm.runs import checkpoint, json_files, open_model, workdir
from hybridlm.storage import open_path
from hybridlm.train import setup
from kernels_pallas import dispatch

SMALL = dict(width=16, depth=1, pattern="full", mlp=dict(kind="swiglu", hidden=16))


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """A run with checkpoints 4 and 8 that were drawn, not trained."""
    path = tmp_path_factory.mktemp("outputs") / "run"
    path.mkdir()
    overrides = [(f"model.{k}", repr(v)) for k, v in SMALL.items()] + [("data.seq_len", "256")]
    demo = request.config.rootpath / "configs/demo.py"
    loaded, _ = setup.resolve(config.load(f"{demo}:smoke", overrides))
    json_files.write_json(path / workdir.CONFIG, to_dict(loaded))
    model, rng = Model.of(loaded.model), np.random.default_rng(0)
    checkpoints = checkpoint.Checkpoints(path, keep=2)
    for step in (4, 8):
        params = jax.tree.map(
            lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), model.abstract
        )
        checkpoints.save(step, {"params": params}, {"step": step})
        checkpoints.wait()
    checkpoints.close()
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def names(url):
    return {path.name for path in open_path(url).iterdir()}


@pytest.mark.slow
def test_probe_appends_and_eval_writes_its_files(run, bucket, command, in_root):
    with dispatch.auto_means("reference"):
        probe = ["probe", "--workdir", run, "--probes", "heads", "--length", 256, "--samples", 2]
        for step in (4, 8):
            assert command(*probe, "--step", step, "--out", f"{bucket}/probes")[0] == 0
        code, said, _ = command(
            *["eval", "--workdir", run, "--tasks", "needle", "--lengths", 256, "--samples", 2],
            *["--out", f"{bucket}/evals"],
        )
    assert code == 0 and f"written to {bucket}/evals" in said
    assert names(f"{bucket}/probes") == {"probes.jsonl", "probes.txt"}
    lines = (open_path(bucket) / "probes/probes.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == {4, 8}
    assert {"eval.json", "eval.txt", "needle.svg"} <= names(f"{bucket}/evals")


def test_models_and_a_tokenizer_are_written(run, bucket, command, in_root):
    """What `average` and `train-tokenizer` write there is opened from there."""
    assert command("average", run, "--last", 2, "--out", f"{bucket}/average")[0] == 0
    means = jax.tree.map(
        lambda a, b: (np.asarray(a, np.float64) + np.asarray(b, np.float64)) / 2,
        *(checkpoint.load_numpy(run, step)[1]["params"] for step in (4, 8)),
    )
    found = open_model(open_path(f"{bucket}/average"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found.params, means)
    corpus = "data/corpora/state_of_the_union.jsonl.gz"
    words = ["--source", corpus, "--kind", "jsonl", "--vocab_size", 260]
    assert command("train-tokenizer", *words, "--out", f"{bucket}/tokenizer.json")[0] == 0
    assert json.loads((open_path(bucket) / "tokenizer.json").read_text())["model"]["type"] == "BPE"


@pytest.mark.slow
def test_a_checkpoint_of_transformers_is_written_and_read_back(bucket, command, root):
    """`convert import` into a bucket, `convert export` within it, and that checkpoint opened."""
    llama, tensors = root / "tests/convert/fixtures/llama", ["--dtype", "float32"]
    assert command("convert", "import", "--from", llama, "--out", f"{bucket}/model")[0] == 0
    there = ["--from", f"{bucket}/model", "--out", f"{bucket}/hf"]
    assert command("convert", "export", *there, *tensors)[0] == 0
    opened = open_model(open_path(f"{bucket}/hf"))
    jax.tree.map(np.testing.assert_array_equal, opened.params, open_model(llama).params)

"""A model is opened out of a run or a model folder, and gives the same logits wherever it lies."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm import config
from hybridlm.config import to_dict
from hybridlm.data import train_bpe
from hybridlm.errors import RunError
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from hybridlm.runs import checkpoint, json_files, open_model, save_model, workdir
from hybridlm.train import setup

TEXTS = [
    "the quick brown fox jumps over the lazy dog " * 5,
    "pack my box with five dozen jugs " * 5,
]
SETTINGS = [
    ("model.width", "16"),
    ("model.mlp.hidden", "16"),
    ("data.tokenizer.kind", "hf"),
    ("data.seq_len", "48"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """A run with checkpoints 4 and 8 that were drawn, not trained, and a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("opened")
    tokenizer = folder / "tokenizer.json"
    train_bpe(TEXTS, 270, tokenizer)
    demo = request.config.rootpath / "configs/demo.py"
    overrides = [*SETTINGS, ("data.tokenizer.path", str(tokenizer))]
    loaded, _ = setup.resolve(config.load(f"{demo}:smoke", overrides))
    path = folder / "run"
    path.mkdir()
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


def tokens_of(opened, shape=(2, 20)):
    return np.random.default_rng(1).integers(0, opened.config.vocab_size, shape)


def test_logits_are_those_of_the_model_packed_or_not(run):
    opened = open_model(run)
    assert opened.step == 8 and open_model(run, step=4).step == 4
    tokens = tokens_of(opened)
    logits = opened.logits(tokens)
    assert logits.shape == (2, 20, opened.config.vocab_size) and logits.dtype == jnp.float32
    module = opened.model.bind(opened.params)
    positions = np.broadcast_to(np.arange(20), (2, 20)).astype(np.int32)
    context = SequenceContext(np.ones((2, 20), np.int32), positions)
    np.testing.assert_allclose(logits, module(tokens, context), rtol=1e-4, atol=1e-5)
    other = open_model(run, step=4).logits(tokens)
    assert np.abs(other - logits).max() > 0.1
    # Packed documents, one of them of one token, and padding at the end.
    ids = np.array([[1] * 7 + [2] + [3] * 9 + [0] * 3, [5] * 20])
    packed = opened.logits(tokens, ids)
    for row, start, end in ((0, 0, 7), (0, 7, 8), (0, 8, 17), (1, 0, 20)):
        alone = opened.logits(tokens[row : row + 1, start:end])
        np.testing.assert_allclose(packed[row, start:end], alone[0], rtol=1e-4, atol=1e-4)


def test_a_model_folder_stands_for_its_run(run, tmp_path):
    """Without the run, its config or its tokenizer's file, and moved."""
    opened = open_model(run, step=4)
    save_model(opened, tmp_path / "model")
    moved = tmp_path / "elsewhere" / "copy"
    moved.parent.mkdir()
    shutil.move(tmp_path / "model", moved)
    again = open_model(moved)
    assert again.config == opened.config and again.length == opened.length == 48
    assert again.tokenizer.fingerprint == opened.tokenizer.fingerprint
    assert pathlib.Path(again.tokenizer.path).parent == moved
    assert json.loads((moved / "model.json").read_text())["from"]["step"] == again.step == 4
    jax.tree.map(np.testing.assert_array_equal, again.params, opened.params)
    tokens = tokens_of(opened)
    np.testing.assert_array_equal(again.logits(tokens), opened.logits(tokens))
    save_model(again, tmp_path / "third")
    np.testing.assert_array_equal(
        open_model(tmp_path / "third").logits(tokens), again.logits(tokens)
    )


def test_what_cannot_be_opened_is_one_sentence(run, tmp_path):
    with pytest.raises(RunError, match="is no run: it has no config.json"):
        open_model(tmp_path)
    with pytest.raises(RunError, match="gone is no run"):
        open_model(tmp_path / "gone")
    with pytest.raises(RunError, match="no checkpoint of step 5: it has 4, 8"):
        open_model(run, step=5)
    opened = open_model(run)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RunError, match="is not empty: name a new folder"):
        save_model(opened, tmp_path / "full")
    save_model(opened, tmp_path / "model")
    with pytest.raises(RunError, match="a model folder, which holds no checkpoint of step 7"):
        open_model(tmp_path / "model", step=7)
    with pytest.raises(RunError, match="a model folder without a run: it names no data"):
        open_model(tmp_path / "model").training_data()
    settings = json.loads((tmp_path / "model" / "model.json").read_text())
    broken = {**settings, "model": {**settings["model"], "widht": 3}}
    (tmp_path / "model" / "model.json").write_text(json.dumps(broken))
    with pytest.raises(RunError, match="unknown key model.widht: did you mean 'width'"):
        open_model(tmp_path / "model")
    wider = {**settings, "model": {**settings["model"], "width": 32, "tie_embeddings": False}}
    (tmp_path / "model" / "model.json").write_text(json.dumps(wider))
    with pytest.raises(
        RunError, match=r"missing: head/kernel; of another shape: embedding \(.*16\)"
    ):
        open_model(tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text("{")
    with pytest.raises(RunError, match=r"model.json is damaged"):
        open_model(tmp_path / "model")


@pytest.mark.parametrize(
    "tokens, ids, sentence",
    [
        (np.zeros(3, int), None, "whole numbers of shape"),
        (np.zeros((1, 3)), None, "not float64"),
        (np.zeros((1, 0), int), None, "whole numbers of shape"),
        (np.zeros((1, 3), int), np.ones((1, 4), int), "segment ids must be"),
        (np.full((1, 3), 10**6), None, "tokens must lie in"),
        (np.full((1, 3), -1), None, "tokens must lie in"),
    ],
)
def test_tokens_that_are_none_are_refused(run, tokens, ids, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_model(run).logits(tokens, ids)


def test_a_model_folder_with_a_flipped_bit_does_not_open(run, tmp_path):
    save_model(open_model(run), tmp_path / "model")
    data = max((tmp_path / "model").rglob("d/*"), key=lambda path: path.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 4
    data.write_bytes(bytes(raw))
    sentence = "model/params cannot be read .*: copy the model folder again, or write it anew"
    with pytest.raises(RunError, match=sentence):
        open_model(tmp_path / "model")

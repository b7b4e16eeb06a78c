"""Memory of an import, and the tokenizer that comes along both ways."""

import tracemalloc

import jax
import numpy as np
import pytest

from hybridlm import convert
from hybridlm.data import train_bpe
from hybridlm.data.tokenizers import HFTokenizer
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.runs import open_model, save_model
from hybridlm.runs.checkpoint import digest

TEXTS = ["the state of the union is strong " * 5, "pack my box with five dozen jugs"]


def drawn(**settings):
    """(model, parameters) of a Llama with these settings."""
    config = ModelConfig(
        pattern="full", mixers={"full": dict(kind="attention", heads=4)}, **settings
    )
    model, rng = Model.of(config), np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), model.abstract
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(folder, model, parameters) of 1.7 million parameters, in bfloat16 and several files."""
    model, params = drawn(width=128, depth=8, vocab_size=1024, mlp=dict(hidden=320))
    params = jax.tree.map(
        lambda x: np.asarray(jax.numpy.asarray(x, "bfloat16"), np.float32), params
    )
    folder = tmp_path_factory.mktemp("large") / "model"
    convert.export(model, params, folder, dtype="bfloat16", shard_bytes=10**6)
    return folder, model, params


def test_an_import_holds_one_copy_and_a_tensor(large):
    folder, model, params = large
    assert len(list(folder.glob("*.safetensors"))) == 4
    checkpoint = convert.open_checkpoint(folder)
    whole = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = max(4 * np.prod(shape) for shape in checkpoint.table.shapes.values())
    tracemalloc.start()
    found = checkpoint.params()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert digest(found) == digest(params)
    assert peak < whole + 2 * largest + 2**18, f"{peak:,} bytes for {whole:,} of parameters"


def test_the_first_parameters_of_a_run_need_a_tensor_at_a_time(large):
    folder, model, _ = large
    checkpoint = convert.open_checkpoint(folder)
    lazy = checkpoint.lazy_params()
    largest = max(4 * np.prod(shape) for shape in checkpoint.table.shapes.values())
    tracemalloc.start()
    for array in jax.tree.leaves(lazy["unit"]):
        for row in range(model.config.depth):
            array[row]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * largest + 2**18


def test_the_tokenizer_comes_along_both_ways(tmp_path):
    tokenizer = train_bpe(TEXTS, 270, tmp_path / "own" / "vocabulary.json")
    (tmp_path / "own" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "own" / "tokenizer_config.json").write_text('{"eos_token": "<|eos|>"}')
    tokenizer = HFTokenizer(tokenizer.path)
    model, params = drawn(width=16, depth=2, vocab_size=270, mlp=dict(hidden=16))
    convert.export(model, params, tmp_path / "out", tokenizer=tokenizer, length=99)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    opened = open_model(tmp_path / "out")
    save_model(opened, tmp_path / "model")
    for found in (opened, open_model(tmp_path / "model")):
        assert found.tokenizer.fingerprint == tokenizer.fingerprint
        assert found.tokenizer.chat_template == "{{ messages }}"
        assert found.length == 99
        assert digest(found.params) == digest(params)
    values = convert.importing.read_config(tmp_path / "out")
    assert values["eos_token_id"] == tokenizer.eos_id
    assert values["bos_token_id"] == tokenizer.bos_id

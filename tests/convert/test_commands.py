"""`hybridlm convert`, and what takes a checkpoint of transformers as it is."""

import json
import pathlib

import numpy as np
import pytest

from hybridlm.convert.safetensors_folder import SafetensorsFolder
from hybridlm.errors import DataError
from hybridlm.runs import open_model
from hybridlm.runs.checkpoint import digest
from hybridlm.runs.source import open_source

LLAMA = pathlib.Path(__file__).parent / "fixtures" / "llama"


def test_there_and_back(command, impatient, tmp_path):
    """DIR -> model folder -> DIR: the tensors are the same, and so is what our model computes."""
    code, said, err = command("convert", "import", "--from", LLAMA, "--out", tmp_path / "model")
    assert code == 0 and said.startswith("LlamaForCausalLM, ")
    assert f"writing the model to {tmp_path}/model ..." in err
    dtype = json.loads((LLAMA / "config.json").read_text())["dtype"]
    code, said, err = command(
        "convert",
        "export",
        "--from",
        tmp_path / "model",
        "--out",
        tmp_path / "out",
        "--dtype",
        dtype,
    )
    assert code == 0 and said.startswith("LlamaForCausalLM, ")
    assert f"writing the checkpoint to {tmp_path}/out ..." in err
    before, after = SafetensorsFolder.open(LLAMA), SafetensorsFolder.open(tmp_path / "out")
    assert before.shapes == after.shapes
    for name in before.shapes:
        np.testing.assert_array_equal(before.read(name), after.read(name))
    assert digest(open_model(LLAMA).params) == digest(open_model(tmp_path / "model").params)


def test_a_checkpoint_is_opened_as_it_is():
    opened = open_model(LLAMA)
    with np.load(LLAMA / "expected.npz") as expected:
        logits = opened.logits(expected["tokens_0"][None])[0]
        largest = np.abs(expected["logits_0"]).max()
        np.testing.assert_allclose(logits, expected["logits_0"], atol=1e-4 * largest)
    assert (
        opened.length == json.loads((LLAMA / "config.json").read_text())["max_position_embeddings"]
    )


def test_a_model_without_a_tokenizer_refuses_text_only():
    tokenizer = open_model(LLAMA).tokenizer
    with pytest.raises(DataError, match="came without a tokenizer"):
        tokenizer.encode("a")
    with pytest.raises(DataError, match="came without a tokenizer"):
        tokenizer.decode([0])


def test_a_source_reads_one_parameter_at_a_time(monkeypatch):
    source = open_source(LLAMA)
    lazy = source.load(optimizer=False)["params"]
    reads = []
    read = SafetensorsFolder.read
    monkeypatch.setattr(
        SafetensorsFolder, "read", lambda self, name: reads.append(name) or read(self, name)
    )
    row = next(iter(lazy["unit"].values()))["mixer"]["q"]["kernel"][1]
    assert reads == ["model.layers.1.self_attn.q_proj.weight"]
    whole = open_model(LLAMA).params
    np.testing.assert_array_equal(
        row, next(iter(whole["unit"].values()))["mixer"]["q"]["kernel"][1]
    )
    assert digest(lazy) == digest(whole)

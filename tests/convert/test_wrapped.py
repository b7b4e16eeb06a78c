"""The text model inside a checkpoint of a model that also sees; its logits are compared elsewhere."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hybridlm.convert import open_checkpoint, wrapped
from hybridlm.convert.importing import read_settings
from hybridlm.errors import ConvertError
from hybridlm.runs import open_model

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path):
    """A copy of the Mistral 3 fixture."""
    found = shutil.copytree(FIXTURES / "wrapped_mistral3", tmp_path / "mistral3")
    return pathlib.Path(found)


def with_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def with_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_what_is_left_out_is_said_in_one_line(folder, capsys):
    names = load_file(folder / "model.safetensors")
    counts = {
        part: sum(name.startswith(part) for name in names)
        for part in ("multi_modal_projector", "vision_tower")
    }
    said = ", ".join(f"{count} of {part}" for part, count in counts.items())
    assert open_checkpoint(folder).left_out == said
    open_model(folder)
    line = f"MistralForCausalLM is read; left out are tensors: {said}\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize(
    "outer, inner, head, tied",
    [
        (True, False, None, True),
        (False, True, None, True),
        (None, None, None, True),
        (None, None, "same", True),
        (None, None, "other", False),
        (True, True, "other", False),
        (False, False, "same", False),
        (None, False, "other", False),
    ],
)
def test_the_head_is_tied_as_the_wrapper_ties_it(folder, outer, inner, head, tied):
    def change(tensors):
        tensors.pop("language_model.lm_head.weight", None)
        if head is not None:
            matrix = tensors[EMBEDDING] * (1 if head == "same" else 2)
            tensors["language_model.lm_head.weight"] = matrix.astype(tensors[EMBEDDING].dtype)

    def state(config):
        for keys, value in ((config, outer), (config["text_config"], inner)):
            keys.pop("tie_word_embeddings", None)
            if value is not None:
                keys["tie_word_embeddings"] = value

    with_tensors(folder, change)
    with_config(folder, state)
    assert open_checkpoint(folder).model.config.tie_embeddings is tied


def test_sizes_that_a_text_config_leaves_out_are_those_of_its_class():
    """As the published Gemma 3 4B writes it."""
    text = dict(
        hidden_size=2560,
        intermediate_size=10240,
        model_type="gemma3_text",
        num_hidden_layers=34,
        rope_scaling=dict(factor=8.0, rope_type="linear"),
        sliding_window=1024,
    )
    config = dict(architectures=["Gemma3ForConditionalGeneration"], text_config=text)
    _, found, _ = read_settings(wrapped.text_config(config, "here"), "here")
    mixer = found.mixers["swa"]
    assert (mixer.heads, mixer.kv_heads, mixer.head_dim) == (8, 4, 256)
    assert (found.vocab_size, found.width, found.depth) == (262_208, 2560, 34)
    assert found.mixers["full"].rope.linear.factor == 8.0
    assert mixer.rope.linear is None


def test_a_text_class_reads_the_names_of_its_wrapper(tmp_path):
    """Both kinds of prefixes, whatever stands beside the text model."""
    config = json.loads((FIXTURES / "wrapped_qwen3_5" / "config.json").read_text())
    tensors = load_file(FIXTURES / "wrapped_qwen3_5" / "model.safetensors")
    renamed = {
        name.replace("model.language_model.", "language_model.model."): x
        for name, x in tensors.items()
    }
    for folder, found in (("a", tensors), ("b", renamed)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        save_file(found, tmp_path / folder / "model.safetensors")
    one, other = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    assert one.model.config == other.model.config
    for name in one.table.by_parameter:
        np.testing.assert_array_equal(one.parameter(name), other.parameter(name))


def test_bad_wrappers_are_one_sentence(folder):
    with_tensors(folder, lambda t: t.pop(EMBEDDING))
    with pytest.raises(ConvertError, match="missing: model.embed_tokens.weight"):
        open_checkpoint(folder)
    with_config(folder, lambda c: c.update(quantization_config={"quant_method": "fp8"}))
    with pytest.raises(ConvertError, match=r"is quantised \(fp8\)"):
        open_checkpoint(folder)
    with_config(folder, lambda c: c["text_config"].update(model_type="x"))
    with pytest.raises(ConvertError, match="names no architecture"):
        open_checkpoint(folder)
    with_config(folder, lambda c: c.update(text_config=3))
    with pytest.raises(ConvertError, match="text_config must be an object, not 3"):
        open_checkpoint(folder)
    with_config(folder, lambda c: c.update(architectures=["PaliGemmaForConditionalGeneration"]))
    with pytest.raises(ConvertError, match="has no PaliGemma.*Gemma3ForConditionalGeneration"):
        open_checkpoint(folder)

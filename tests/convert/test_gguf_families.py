"""GGUF files of Qwen and Gemma that the gguf package writes: the parameters of the safetensors."""

import json
import pathlib

import gguf
import numpy as np
import pytest

from hybridlm.convert import gguf_file, open_checkpoint

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
GEMMA = ("gemma2", "gemma3")
THETA, WINDOW = 50_000.0, 7


def gguf_names(family):
    inner = gguf_file._INNER | (gguf_file._INNER_GEMMA if family in GEMMA else {})
    return {theirs: ours for ours, theirs in {**inner, **gguf_file._OUTER}.items()}


def write(family, path, change=lambda writer: None):
    """A GGUF file with the tensors of a fixture, as llama.cpp's converter writes them."""
    checkpoint, names = open_checkpoint(FIXTURES / family), gguf_names(family)
    config = json.loads((FIXTURES / family / "config.json").read_text())
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(THETA)
    if family in GEMMA:
        writer.add_sliding_window(WINDOW)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(40.0)
        writer.add_final_logit_softcapping(20.0)
    change(writer)
    for name in checkpoint.tensors.shapes:
        x = checkpoint.tensors.read(name).astype(np.float32)
        if family in GEMMA and name.split(".")[-2].endswith("norm"):
            x = x + 1  # llama.cpp's norms have no offset
        if name in names:
            short = names[name]
        else:
            _, _, layer, *part, kind = name.split(".")
            short = f"blk.{layer}.{names['.'.join(part)]}.{kind}"
        writer.add_tensor(short, np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["qwen2", "qwen3", *GEMMA])
def test_the_parameters_are_those_of_the_safetensors(family, tmp_path):
    found = open_checkpoint(write(family, tmp_path / "model.gguf"))
    wanted = open_checkpoint(FIXTURES / family)
    assert found.family.architecture == wanted.family.architecture
    ours, theirs = (x.model.by_name(x.params()) for x in (found, wanted))
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        # 1 + w - 1 loses the last bits of a small w.
        allowed = 2**-23 if family in GEMMA and "norm" in name else 0
        np.testing.assert_allclose(ours[name], x, rtol=0, atol=allowed, err_msg=name)
    mixer, other = (next(iter(x.model.config.mixers.values())) for x in (found, wanted))
    assert (mixer.heads, mixer.kv_heads, mixer.bias) == (other.heads, other.kv_heads, other.bias)
    assert mixer.qk_norm == other.qk_norm
    assert found.length == wanted.length


def test_gemma_has_its_windows_bases_and_caps(tmp_path):
    def scaled(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    model = open_checkpoint(write("gemma2", tmp_path / "2.gguf")).model.config
    mixers = [mixer for _, mixer in model.layer_mixers()]
    assert [x.window for x in mixers[:2]] == [WINDOW, None]
    assert {x.soft_cap for x in mixers} == {40.0} and model.logit_soft_cap == 20.0
    assert {x.rope.theta for x in mixers} == {THETA}
    model = open_checkpoint(write("gemma3", tmp_path / "3.gguf", scaled)).model.config
    mixers = [mixer for _, mixer in model.layer_mixers()]
    assert {x.window for i, x in enumerate(mixers) if (i + 1) % 6} == {WINDOW}
    assert {x.rope.theta for x in mixers if x.window} == {10_000.0}
    assert {x.scale for x in mixers} == {mixers[0].head_dim ** -0.5}
    assert all(x.rope.linear is None for x in mixers if x.window)

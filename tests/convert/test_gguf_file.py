"""GGUF files that the gguf package writes: the same model as from safetensors, its tokenizer too."""

import json
import pathlib

import gguf
import numpy as np
import pytest

from hybridlm.convert import gguf_file, open_checkpoint
from hybridlm.data.tokenizers import HFTokenizer, train_bpe
from hybridlm.errors import ConvertError, DataError
from hybridlm.models.rope_scaling import Llama3RopeConfig
from hybridlm.runs import open_model, save_model
from hybridlm.runs.checkpoint import digest

LLAMA = pathlib.Path(__file__).parent / "fixtures" / "llama"
TEXTS = ["the state of the union is strong, and it is 2026", "twenty-two times 35 is 770\n\n  it's"]
THETA = 500_000.0  # the lowest frequency rotates less than once in 8192 tokens
INVERSE = {theirs: ours for ours, theirs in {**gguf_file._OUTER, **gguf_file._INNER}.items()}


def gguf_name(name):
    if name in INVERSE:
        return INVERSE[name]
    _, _, layer, *part, kind = name.split(".")
    return f"blk.{layer}.{INVERSE['.'.join(part)]}.{kind}"


def pairs_from_halves(x, heads):
    """As llama.cpp's converter writes rows of q and k."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(path, *, rope=None, keys=(), tokenizer=None, change=lambda tensors: None):
    """A GGUF file of the Llama fixture, without scaled RoPE unless `rope` is given."""
    checkpoint = open_checkpoint(LLAMA)
    config = json.loads((LLAMA / "config.json").read_text())
    tensors = {n: checkpoint.tensors.read(n).astype(np.float32) for n in checkpoint.tensors.shapes}
    change(tensors)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(THETA)
    for key, number in keys:
        writer.add_uint32(key, number)
    if rope is not None:
        divisors = 1 / rope.frequency_factors(THETA, config["head_dim"])
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for name, x in tensors.items():
        part = name.split(".")[-2]
        if part in heads:
            x = pairs_from_halves(x, config[heads[part]])
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer, tokenizer):
    content = json.loads(pathlib.Path(tokenizer.path).read_text())
    vocab = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    special = {t["content"] for t in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocab)
    writer.add_token_types([3 if token in special else 1 for token in vocab])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_chat_template("{{ messages }}")


@pytest.mark.parametrize("rope", [None, Llama3RopeConfig(8.0, 8192), Llama3RopeConfig(32.0, 8192)])
def test_the_parameters_are_those_of_the_safetensors(tmp_path, rope):
    """Rows of q and k are back in their order, scaled RoPE is found in the tensor of its factors."""
    path = write(tmp_path / "llama.gguf", rope=rope)
    found, wanted = open_checkpoint(path), open_checkpoint(LLAMA)
    assert digest(found.params()) == digest(wanted.params())
    mixer, other = (next(iter(x.model.config.mixers.values())) for x in (found, wanted))
    assert (mixer.rope.theta, mixer.rope.llama3) == (THETA, rope)
    assert (mixer.heads, mixer.kv_heads, mixer.bias) == (other.heads, other.kv_heads, other.bias)
    assert found.length == wanted.length
    assert {dtype.name for dtype in found.dtypes.values()} == {"float32"}


def test_the_tokenizer_becomes_the_file_it_was(tmp_path):
    trained = train_bpe(TEXTS, 270, tmp_path / "tokenizer.json")

    def larger(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = np.resize(tensors[name], (270, tensors[name].shape[1]))

    path = write(tmp_path / "llama.gguf", tokenizer=trained, change=larger)
    opened = open_model(path)
    for text in TEXTS:
        np.testing.assert_array_equal(opened.tokenizer.encode(text), trained.encode(text))
        assert opened.tokenizer.decode(trained.encode(text)) == text
    assert (opened.tokenizer.bos_id, opened.tokenizer.eos_id) == (trained.bos_id, trained.eos_id)
    assert opened.tokenizer.chat_template == "{{ messages }}"
    save_model(opened, tmp_path / "model")
    again = open_model(tmp_path / "model")
    assert isinstance(again.tokenizer, HFTokenizer)
    assert again.tokenizer.fingerprint == opened.tokenizer.fingerprint
    assert again.tokenizer.chat_template == "{{ messages }}"


def test_a_file_without_a_tokenizer_says_so(tmp_path):
    opened = open_model(write(tmp_path / "llama.gguf"))
    with pytest.raises(DataError, match="the file holds no tokenizer"):
        opened.tokenizer.encode("a")


def test_an_unknown_key_is_named(tmp_path):
    path = write(tmp_path / "llama.gguf", keys=[("llama.expert_count", 8)])
    with pytest.raises(ConvertError, match="llama.expert_count = 8"):
        open_checkpoint(path)


def test_other_architectures_and_damaged_files_are_one_sentence(tmp_path):
    path = write(tmp_path / "llama.gguf")
    content = path.read_bytes()
    (other := tmp_path / "other.gguf").write_bytes(content.replace(b"llama", b"falco", 1))
    with pytest.raises(
        ConvertError, match="GGUF files of llama, qwen2, qwen3, gemma2, gemma3, not of falco"
    ):
        open_checkpoint(other)
    with pytest.raises(ConvertError, match="factors in rope_freqs.weight are not those"):
        open_checkpoint(write(tmp_path / "short.gguf", rope=Llama3RopeConfig(8.0, 64)))
    for kept in (0, 3, 100, len(content) // 2):
        (cut := tmp_path / f"cut{kept}.gguf").write_bytes(content[:kept])
        with pytest.raises(ConvertError, match="is no whole GGUF file: copy it again"):
            open_checkpoint(cut)
    with pytest.raises(ConvertError, match="gone.gguf does not exist"):
        open_checkpoint(tmp_path / "gone.gguf")

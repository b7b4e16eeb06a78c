"""Tokenizers: round trips, bytes per token, special ids, fingerprints, and invalid files."""

import json

import numpy as np
import pytest
from data_helpers import BYTES, draw_texts, texts, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data.settings import TokenizerConfig
from hybridlm.data.tokenizers import open_tokenizer, train_bpe
from hybridlm.errors import DataError

VOCAB = 300


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    return train_bpe(draw_texts(np.random.default_rng(), 100), VOCAB, path)


@pytest.fixture(scope="module")
def sentencepiece_path(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("sp")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(draw_texts(np.random.default_rng(), 300)),
        model_prefix=str(folder / "sp"),
        vocab_size=380,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "sp.model"


@pytest.fixture(scope="module")
def sentencepiece(sentencepiece_path):
    return open_tokenizer(TokenizerConfig("sentencepiece", str(sentencepiece_path)))


@pytest.fixture(params=["bytes", "bpe", "sentencepiece"])
def tokenizer(request):
    if request.param == "bytes":
        return open_tokenizer(BYTES)
    return request.getfixturevalue(request.param)


def check_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert ((0 <= ids) & (ids < tokenizer.vocab_size)).all()
    assert tokenizer.bos_id not in ids and tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_bytes_round_trip_any_text(text):
    check_round_trip(open_tokenizer(BYTES), text)


@settings(max_examples=60, deadline=None)
@given(text=texts | st.sampled_from(["<|bos|> a <|eos|>", " two  spaces\n\n"]))
def test_trained_bpe_round_trips_any_text(bpe, text):
    check_round_trip(bpe, text)


@settings(max_examples=60, deadline=None)
@given(text=texts.map(lambda t: t.replace("\0", "").replace("▁", "")))
def test_sentencepiece_round_trips_text(sentencepiece, text):
    check_round_trip(sentencepiece, text)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=40))
def test_invalid_bytes_are_shown_as_replacement(bpe, data):
    expected = data.decode("utf-8", errors="replace")
    assert open_tokenizer(BYTES).decode(list(data)) == expected
    by_byte = bpe._tokenizer.get_vocab()
    alphabet = sorted(t for t in by_byte if len(t) == 1)
    assert len(alphabet) == 256
    shown = bpe.decode([by_byte[_byte_letter(b)] for b in data])
    assert ("\ufffd" in shown) == ("\ufffd" in expected)


def _byte_letter(byte):
    """GPT-2's byte alphabet: printable bytes map to themselves, the others to U+0100 onwards."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return chr(byte) if byte in printable else chr(256 + others.index(byte))


def test_ids_and_specials(tokenizer):
    sizes = tokenizer.token_bytes()
    assert sizes.shape == (tokenizer.vocab_size,) and sizes.dtype == np.int32
    assert sizes[[tokenizer.bos_id, tokenizer.eos_id]].tolist() == [0, 0]
    assert tokenizer.bos_id != tokenizer.eos_id
    assert max(tokenizer.bos_id, tokenizer.eos_id) < tokenizer.vocab_size
    with pytest.raises(DataError, match="outside the tokenizer's vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


def test_byte_ids():
    tokenizer = open_tokenizer(BYTES)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (258, 256, 257)


def test_bpe_training_is_deterministic(tmp_path):
    documents = draw_texts(np.random.default_rng(), 200)
    source = write_jsonl(tmp_path / "a.jsonl", documents)
    one = train_bpe(documents, VOCAB, tmp_path / "1.json")
    two = train_bpe(source.documents(), VOCAB, tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert one.fingerprint == two.fingerprint
    assert one.vocab_size == VOCAB
    assert len(one.encode(documents[0])) < len(documents[0].encode())
    again = open_tokenizer(TokenizerConfig("hf", str(tmp_path / "1.json")))
    assert again.fingerprint == one.fingerprint


def test_bpe_training_refuses(tmp_path):
    with pytest.raises(DataError, match="at least 258"):
        train_bpe(["a"], 257, tmp_path / "a.json")
    with pytest.raises(DataError, match="is 4294967296; it must be at most 16777216"):
        train_bpe(["a"], 2**32, tmp_path / "a.json")
    with pytest.raises(DataError, match="no document to train"):
        train_bpe([], 300, tmp_path / "a.json")
    with pytest.raises(DataError, match="yields a vocabulary of 260, not 1000"):
        train_bpe(["aa aa"], 1000, tmp_path / "a.json")
    bad = write_jsonl(tmp_path / "b.jsonl", ["good", ""])
    with pytest.raises(DataError, match=":2: the document has no text"):
        train_bpe(bad.documents(), 300, tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()
    train_bpe(draw_texts(np.random.default_rng(), 50), VOCAB, tmp_path / "a.json")
    with pytest.raises(DataError, match="exists"):
        train_bpe(["aa"], 300, tmp_path / "a.json")


def rewrite(bpe, folder, change):
    """A copy of a tokenizer.json after `change(its JSON)`."""
    with open(bpe.path, encoding="utf-8") as file:
        content = json.load(file)
    change(content)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_an_invalid_path_is_named():
    with pytest.raises(DataError, match="null byte"):
        open_tokenizer(TokenizerConfig("hf", "a\0b"))


def open_hf(path):
    return open_tokenizer(TokenizerConfig("hf", str(path)))


def test_hf_file_without_specials_gets_ids_after_its_vocabulary(bpe, tmp_path):
    def change(content):
        names = {"<|bos|>": "<|x|>", "<|eos|>": "<|y|>"}
        for token in content["added_tokens"]:
            token["content"] = names[token["content"]]
        vocab = content["model"]["vocab"]
        for old, new in names.items():
            vocab[new] = vocab.pop(old)

    tokenizer = open_hf(rewrite(bpe, tmp_path, change))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (VOCAB, VOCAB + 1)
    assert tokenizer.vocab_size == VOCAB + 2
    assert len(tokenizer.token_bytes()) == VOCAB + 2
    check_round_trip(tokenizer, "a union of states")
    # A tokenizer_config.json beside the file names its special tokens.
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": None, "eos_token": {"content": "<|y|>"}})
    )
    tokenizer = open_hf(tmp_path / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (VOCAB, 1)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<none>"}))
    with pytest.raises(DataError, match="names bos_token '<none>', which is not in its vocab"):
        open_hf(tmp_path / "tokenizer.json")


def test_hf_truncation_and_padding_in_the_file_are_ignored(bpe, tmp_path):
    def change(content):
        content["truncation"] = {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        content["padding"] = {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|bos|>",
        }

    check_round_trip(open_hf(rewrite(bpe, tmp_path, change)), "the states of the union " * 9)


def test_sentencepiece_without_specials_gets_ids_after_its_pieces(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(draw_texts(np.random.default_rng(), 300)),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=60,
        bos_id=-1,
        eos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = open_tokenizer(TokenizerConfig("sentencepiece", str(tmp_path / "sp.model")))
    pieces = tokenizer.vocab_size - 2
    assert (tokenizer.bos_id, tokenizer.eos_id) == (pieces, pieces + 1)
    assert tokenizer.decode([pieces, *tokenizer.encode("the union"), pieces + 1]) == "the union"
    assert tokenizer.unk_id in tokenizer.encode("Ω")


def test_fingerprints_differ(tokenizer, bpe, sentencepiece):
    others = [t for t in (open_tokenizer(BYTES), bpe, sentencepiece) if t.kind != tokenizer.kind]
    assert len(tokenizer.fingerprint) == 64
    assert tokenizer.fingerprint not in [t.fingerprint for t in others]


@pytest.mark.parametrize("kind", ["hf", "sentencepiece"])
def test_invalid_tokenizer_files_are_refused(kind, tmp_path):
    def opening(path):
        return open_tokenizer(TokenizerConfig(kind, str(path)))

    with pytest.raises(DataError, match="cannot be read .No such file"):
        opening(tmp_path / "missing")
    for number, content in enumerate([b"", b"hello", b"{}", b"\xff\xfe\x00", b"[]"]):
        path = tmp_path / f"{number}"
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a valid") as error:
            opening(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("kind, module", [("hf", "tokenizers"), ("sentencepiece", "sentencepiece")])
def test_a_missing_library_names_the_extra(kind, module, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(DataError, match=rf"needs {module}.*pip install 'hybridlm\[hf\]'"):
        open_tokenizer(TokenizerConfig(kind, str(tmp_path / "x")))

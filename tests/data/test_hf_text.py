"""Ordinary text is never read as special tokens by a Hugging Face tokenizer, and none of it is lost."""

import json

import numpy as np
import pytest
import tokenizers
from data_helpers import draw_texts, texts, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data import open_shards, tokenize
from hybridlm.data.settings import TokenizerConfig
from hybridlm.data.tokenizers import open_tokenizer, train_bpe
from hybridlm.errors import DataError

BOS, EOS = "<|begin|>", "<|im_end|>"
LETTERS = sorted(set("".join(draw_texts(np.random.default_rng(0), 300))) | set(BOS + EOS))


def opened(folder, library, config=None):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(library.to_str(), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return open_tokenizer(TokenizerConfig("hf", str(folder / "tokenizer.json")))


def byte_bpe(folder, special):
    """A byte-level BPE whose BOS and EOS are added tokens, special or not."""
    path = folder / "trained.json"
    if not path.exists():
        train_bpe(draw_texts(np.random.default_rng(), 100), 300, path)
    library = tokenizers.Tokenizer.from_file(str(path))
    library.add_tokens([tokenizers.AddedToken(name, special=special) for name in (BOS, EOS)])
    return library


def pieces(model):
    """A tokenizer whose model has EOS as a piece that it would make from text."""
    vocab = {piece: i for i, piece in enumerate([*LETTERS, "?", EOS, BOS])}
    if model == "unigram":
        scored = [(piece, 0.0 if piece in (EOS, BOS) else -5.0) for piece in vocab]
        made = tokenizers.models.Unigram(scored, vocab["?"], False)
    elif model == "wordlevel":
        made = tokenizers.models.WordLevel(vocab, unk_token="?")
    elif model == "wordpiece":
        vocab |= {"##" + letter: len(vocab) + i for i, letter in enumerate(LETTERS)}
        made = tokenizers.models.WordPiece(vocab, unk_token="?")
    else:
        steps = [EOS[:n] for n in range(2, len(EOS))]
        vocab |= {step: len(vocab) + i for i, step in enumerate(steps)}
        merges = [(EOS[:n], EOS[n]) for n in range(1, len(EOS))]
        made = tokenizers.models.BPE(vocab, merges, unk_token="?")
    return tokenizers.Tokenizer(made)


@pytest.mark.parametrize("how", ["eos_token", "additional_special_tokens", "added_tokens_decoder"])
@pytest.mark.parametrize("special", [True, False])
def test_the_name_of_a_special_token_in_text_is_text(special, how, tmp_path):
    """Whether tokenizer.json calls it special, or only a key of tokenizer_config.json does."""
    entry = {
        "eos_token": EOS,
        "additional_special_tokens": [EOS],
        "added_tokens_decoder": {"301": {"content": EOS, "special": True}},
    }[how]
    tokenizer = opened(tmp_path, byte_bpe(tmp_path, special), {how: entry})
    text = f"the {EOS} of {EOS}{EOS} it"
    ids = tokenizer.encode(text)
    assert tokenizer._tokenizer.token_to_id(EOS) not in ids and tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_shards_end_once_for_each_document(tmp_path):
    documents = [f"{text} {EOS} {text}" for text in draw_texts(np.random.default_rng(), 26)]
    tokenizer = opened(tmp_path, byte_bpe(tmp_path, False), {"bos_token": BOS, "eos_token": EOS})
    source = write_jsonl(tmp_path / "a.jsonl", documents)
    shards = open_shards(tokenize(source, tokenizer, tmp_path / "t", 0.3), tokenizer=tokenizer)
    for split in (shards.train, shards.heldout):
        tokens, _ = split.read(0, split.tokens)
        assert (tokens == tokenizer.eos_id).sum() == split.documents
        assert (tokens == tokenizer.bos_id).sum() == split.documents
        assert split.token_bytes == split.bytes


def test_the_fingerprint_changes_only_where_the_tokens_do(tmp_path):
    import hashlib

    named = {"bos_token": BOS, "eos_token": EOS}
    for special in (True, False):
        tokenizer = opened(tmp_path / f"{special}", byte_bpe(tmp_path, special), named)
        content = (tmp_path / f"{special}" / "tokenizer.json").read_bytes()
        head = f"hf\n{tokenizer.bos_id}\n{tokenizer.eos_id}\n".encode()
        assert (tokenizer.fingerprint == hashlib.sha256(head + content).hexdigest()) == special


@pytest.mark.parametrize("model", ["unigram", "wordlevel", "wordpiece", "bpe"])
def test_a_model_makes_no_special_token_from_text(model, tmp_path):
    library = pieces(model)
    assert library.token_to_id(EOS) in library.encode(EOS).ids
    plain = opened(tmp_path / "a", library)  # nothing says that EOS is special
    tokenizer = opened(tmp_path / "b", library, {"bos_token": BOS, "eos_token": EOS})
    assert tokenizer.eos_id == library.token_to_id(EOS) and tokenizer.vocab_size < plain.vocab_size
    for text in ("the", EOS, f"{EOS}{EOS}", "the union"):
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids and tokenizer.bos_id not in ids
        if EOS not in text:
            assert ids.tolist() == plain.encode(text).tolist()


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    """A BPE of some letters, without an unknown token and without bytes."""
    vocab = {letter: i for i, letter in enumerate("abc xyz")} | {"ab": 7}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b")]))
    library.add_tokens([tokenizers.AddedToken("Q", special=False)])
    return opened(tmp_path_factory.mktemp("lossy"), library)


@settings(max_examples=60, deadline=None)
@given(text=texts | st.text("abc xyzQ", max_size=30))
def test_text_that_a_bpe_would_lose_is_refused(lossy, text):
    known = set("abc xyzQ")
    lost = [i for i, c in enumerate(text) if c not in known]
    if lost:
        with pytest.raises(DataError, match="would be lost") as error:
            lossy.encode(text)
        assert f"{text[lost[0]]!r} (character {lost[0]} of" in str(error.value)
    else:
        assert lossy.token_bytes()[lossy.encode(text)].sum() == len(text)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_document_that_cannot_be_encoded_is_named(lossy, processes, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", ["abc", "xyz", "abé"])
    with pytest.raises(DataError, match=r"a.jsonl:3: tokenizer .* no token for 'é' \(character 2"):
        tokenize(source, lossy, tmp_path / "t", 0.3, processes)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("fallback", [True, False])
def test_no_text_is_refused_where_each_byte_has_a_token(fallback, tmp_path):
    if fallback:
        vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"a": 256}
        library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], byte_fallback=True))
    else:
        library = byte_bpe(tmp_path, True)
    tokenizer = opened(tmp_path / "t", library)
    for text in ("naïve 数 🙂", "\0\x7f"):
        assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


def test_a_byte_level_bpe_that_lacks_a_byte_refuses_it(tmp_path):
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = opened(tmp_path, library)
    assert tokenizer.encode("ab").tolist() == [0, 1]
    with pytest.raises(DataError, match="no token for 'c'"):
        tokenizer.encode("abc")


@pytest.mark.parametrize("model", ["unigram", "wordlevel", "wordpiece", "bpe"])
def test_unknown_text_is_counted_or_refused(model, tmp_path):
    tokenizer = opened(tmp_path, pieces(model), {"bos_token": BOS, "eos_token": EOS})
    assert tokenizer.unk_id in tokenizer.encode("Ω")


def test_a_model_that_cannot_encode_is_one_sentence(tmp_path):
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="none"))
    with pytest.raises(DataError, match=r"cannot encode the text 'b'.*Missing \[UNK\]"):
        opened(tmp_path, library).encode("b")


def test_dropout_in_the_file_is_ignored(tmp_path):
    vocab = {"a": 0, "b": 1, "ab": 2}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b")], dropout=1.0))
    assert opened(tmp_path, library).encode("abab").tolist() == [2, 2]

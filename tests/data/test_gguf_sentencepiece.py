"""The SentencePiece vocabulary of a GGUF file reads text as SentencePiece does."""

import random

import gguf
import pytest
import sentencepiece

from hybridlm.data.settings import TokenizerConfig
from hybridlm.data.tokenizers import open_tokenizer
from hybridlm.errors import DataError

WORDS = "the state of the union is strong and it's 2026: twenty-two times 35 is 770\n\n x  y   z"
TEXTS = [
    WORDS,
    "  two spaces, then   three     five       seven",
    "tabs\tand\nlines \n of un­usual bytes: ½ 日本 🙂 \u0000",
    "",
    " ",
    "unionunionunion statestate isis",
]
SYMBOLS = ["<pad>", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁"]


def trained(folder, *, prefix, symbols):
    """A SentencePiece model, as Llama 2 (with a prefix) and Gemma (without) have it."""
    rng = random.Random(0)
    corpus = folder / "corpus.txt"
    lines = [" ".join(rng.choices(WORDS.split(), k=9)) for _ in range(400)]
    corpus.write_text("\n".join([*lines, "a  b   c    d     e"] * 2))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "sp"),
        model_type="bpe",
        vocab_size=380,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        user_defined_symbols=symbols,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "sp.model"))


def write(path, model, *, prefix, template=None, scores=True):
    """As llama.cpp's converter writes it."""
    count = model.get_piece_size()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i) for i in range(count)])
    if scores:
        writer.add_token_scores([model.get_score(i) for i in range(count)])
    kinds = [
        gguf.TokenType.UNKNOWN
        if model.is_unknown(i)
        else gguf.TokenType.CONTROL
        if model.is_control(i)
        else gguf.TokenType.BYTE
        if model.is_byte(i)
        else gguf.TokenType.USER_DEFINED
        if model.id_to_piece(i) in SYMBOLS
        else gguf.TokenType.NORMAL
        for i in range(count)
    ]
    writer.add_token_types(kinds)
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    writer.add_unk_token_id(model.unk_id())
    writer.add_add_space_prefix(prefix)
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("prefix, symbols", [(True, []), (False, []), (False, SYMBOLS)])
def test_ids_and_texts_are_those_of_sentencepiece(prefix, symbols, tmp_path):
    model = trained(tmp_path, prefix=prefix, symbols=symbols)
    path = write(tmp_path / "sp.gguf", model, prefix=prefix, template="{{ messages }}")
    found = open_tokenizer(TokenizerConfig("gguf", str(path)))
    rng = random.Random(1)
    pieces = [*WORDS, *WORDS.split(), "  ", "   ", "ü", "\n\n", "日"]
    drawn = ["".join(rng.choices(pieces, k=40)) for _ in range(200)]
    for text in [*TEXTS, *drawn]:
        ids = model.encode(text)
        assert found.encode(text).tolist() == ids, repr(text)
        assert found.decode(ids) == model.decode(ids) == text
    assert (found.bos_id, found.eos_id) == (model.bos_id(), model.eos_id())
    assert found.vocab_size == model.get_piece_size()
    assert found.chat_template == "{{ messages }}"
    ids = found.encode(WORDS)
    assert found.token_bytes()[ids].sum() == len(WORDS.encode()) + prefix


def test_a_vocabulary_without_scores_is_refused(tmp_path):
    model = trained(tmp_path, prefix=True, symbols=[])
    path = write(tmp_path / "sp.gguf", model, prefix=True, scores=False)
    with pytest.raises(DataError, match="SentencePiece vocabulary has no scores"):
        open_tokenizer(TokenizerConfig("gguf", str(path)))

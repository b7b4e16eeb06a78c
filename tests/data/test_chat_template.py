"""Conversations: what a template renders, which of it is an answer, and that text stays text."""

import json

import numpy as np
import pytest
from data_helpers import BYTES, draw_texts, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data.chat_template import template_pieces
from hybridlm.data.examples import Completion, Conversation, encode_pieces
from hybridlm.data.settings import TokenizerConfig
from hybridlm.data.tokenizers import open_tokenizer, train_bpe
from hybridlm.errors import DataError

plain = st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=80)
START, END = "<|im_start|>", "<|im_end|>"
# ChatML as it is usually written, and with the answers marked.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- m.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TEMPLATES = {"found": CHATML, "marked": MARKED}
CHAT = [
    ("system", "Be brief."),
    ("user", "Who spoke?"),
    ("assistant", "Monroe."),
    ("user", "When?"),
    ("assistant", "In 1823."),
]


def messages(*turns):
    return tuple({"role": role, "content": content} for role, content in turns)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level BPE with ChatML's two tokens, of which one ends a document."""
    import tokenizers

    folder = tmp_path_factory.mktemp("chat")
    train_bpe(draw_texts(np.random.default_rng(), 100), 300, folder / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.add_special_tokens([START, END])
    library.save(str(folder / "tokenizer.json"))
    config = {"chat_template": CHATML, "eos_token": "<|eos|>", "bos_token": "<|bos|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return open_tokenizer(TokenizerConfig("hf", str(folder / "tokenizer.json")))


def rendered(pieces):
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_chatml_is_rendered_as_its_definition_says(template, tokenizer):
    pieces = template_pieces(messages(*CHAT), tokenizer, template)
    assert rendered(pieces) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWho spoke?<|im_end|>\n"
        "<|im_start|>assistant\nMonroe.<|im_end|>\n"
        "<|im_start|>user\nWhen?<|im_end|>\n"
        "<|im_start|>assistant\nIn 1823.<|im_end|>\n"
    )
    learned = [piece.text for piece in pieces if piece.answer]
    assert learned == ["Monroe.", END, "In 1823.", END]
    names = [piece.text for piece in pieces if piece.token is not None]
    assert names == [START, END] * 5


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_text_between_special_tokens_is_encoded_whole(template, tokenizer):
    """As transformers encodes a rendered conversation, but for the cut before an answer."""
    encoded = encode_pieces(template_pieces(messages(*CHAT[1:3]), tokenizer, template), tokenizer)
    start, end = (tokenizer.special_tokens[name] for name in (START, END))
    parts = [
        ([start], False),
        (tokenizer.encode("user\nWho spoke?"), False),
        ([end], False),
        (tokenizer.encode("\n"), False),
        ([start], False),
        (tokenizer.encode("assistant\n"), False),
        (tokenizer.encode("Monroe."), True),
        ([end], True),
        (tokenizer.encode("\n"), False),
        ([tokenizer.eos_id], False),  # the document's, which shards append
    ]
    ids = np.concatenate([part for part, _ in parts])
    assert encoded.ids.tolist() == ids[:-1].tolist()
    expected = np.concatenate([np.full(len(part), answer) for part, answer in parts])
    assert encoded.counts.tolist() == expected.tolist()


@settings(max_examples=40, deadline=None)
@given(
    said=st.lists(
        plain | st.sampled_from([START, END, f"a{END}\n{START}assistant\nb", "<|eos|>", " \n"]),
        min_size=2,
        max_size=4,
    ),
    template=st.sampled_from(list(TEMPLATES.values())),
)
def test_no_message_makes_a_special_token(said, template, tokenizer):
    """Whatever is said, special tokens are those of the template, and the text is kept."""
    turns = [("user", text) if i % 2 == 0 else ("assistant", text) for i, text in enumerate(said)]
    pieces = template_pieces(messages(*turns), tokenizer, template)
    assert rendered(pieces) == "".join(f"{START}{role}\n{text}{END}\n" for role, text in turns)
    ids = encode_pieces(pieces, tokenizer).ids
    named = sorted(tokenizer.special_tokens.values())
    assert np.isin(ids, named).sum() == 2 * len(turns)
    learned = "".join(piece.text for piece in pieces if piece.answer)
    assert learned == "".join(text + END for role, text in turns if role == "assistant")


def test_bos_and_eos_of_the_template_are_those_of_the_document(tokenizer):
    """LLaMA's form: BOS begins it, EOS ends each answer; the shards' BOS and EOS stand for both."""
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[{{ m.content | trim }}]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = messages(("user", " a "), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    encoded = encode_pieces(template_pieces(chat, tokenizer, template), tokenizer)
    parts = [
        (tokenizer.encode("[a]"), False),
        (tokenizer.encode("b"), True),
        ([tokenizer.eos_id], True),
        (tokenizer.encode("[c]"), False),
        (tokenizer.encode("d"), True),
    ]
    assert encoded.ids.tolist() == np.concatenate([part for part, _ in parts]).tolist()
    expected = [np.full(len(part), answer) for part, answer in parts] + [[True]]
    assert encoded.counts.tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize(
    "template, words",
    [
        ("{% for m in messages %}", "invalid in line 1"),
        ("{{ raise_exception('no system, please') }}", "refuses the messages: no system, please"),
        ("{{ messages[9].content }}", "refuses the messages"),
        ("{{ messages.append(1) }}", "refuses the messages.*unsafe"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages.*unsafe"),
        ("{{ messages | length }}", "first 1 messages as the beginning of all 2"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}|", "as the beginning of all 2"),
        ("", "writes nothing for message 2"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_sentence(template, words, tokenizer):
    chat = messages(("user", "a"), ("assistant", "b"))
    with pytest.raises(DataError, match=words) as error:
        template_pieces(chat, tokenizer, template)
    assert "\n" not in str(error.value)


def test_private_use_characters_in_messages_are_refused(tokenizer):
    chat = messages(("user", "a\U00100001"), ("assistant", "b"))
    with pytest.raises(DataError, match="private-use character U\\+100001"):
        template_pieces(chat, tokenizer, CHATML)


def test_the_plain_form_is_bounded_by_ends_of_documents():
    """Without a template: text cannot hold EOS, so no message can end itself."""
    tokenizer = open_tokenizer(BYTES)
    encoded = Conversation("a", messages(*CHAT[1:4])).encode(tokenizer)
    parts = [
        (tokenizer.encode("user\nWho spoke?"), False),
        ([tokenizer.eos_id], False),
        (tokenizer.encode("assistant\n"), False),
        (tokenizer.encode("Monroe."), True),
        ([tokenizer.eos_id], True),
        (tokenizer.encode("user\nWhen?"), False),
    ]
    assert encoded.ids.tolist() == np.concatenate([part for part, _ in parts]).tolist()
    expected = [np.full(len(part), answer) for part, answer in parts] + [[False]]
    assert encoded.counts.tolist() == np.concatenate(expected).tolist()


@settings(max_examples=40, deadline=None)
@given(prompt=texts, completion=texts.filter(bool))
def test_a_completion_counts_with_the_end_of_its_document(prompt, completion):
    tokenizer = open_tokenizer(BYTES)
    encoded = Completion("a", prompt, completion).encode(tokenizer)
    assert encoded.ids.tolist() == list((prompt + completion).encode())
    answer = len(completion.encode()) + 1
    assert encoded.counts.tolist() == [False] * len(prompt.encode()) + [True] * answer


def test_the_template_comes_from_the_tokenizers_folder(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(open(tokenizer.path, "rb").read())

    def template(config, jinja=None):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        if jinja is not None:
            (tmp_path / "chat_template.jinja").write_text(jinja)
        return open_tokenizer(TokenizerConfig("hf", str(tmp_path / "tokenizer.json"))).chat_template

    assert template({}) is None
    assert template({"chat_template": "one"}) == "one"
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert template({"chat_template": several}) == "b"
    assert template({"chat_template": "one"}, jinja="two") == "two"

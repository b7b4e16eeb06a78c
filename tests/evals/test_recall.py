"""Recall tasks from local files: prompts, cuts around the answer, and refused files."""

import json

import pytest

from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.errors import DataError, UserError
from hybridlm.evals import recall

CONTEXT = " ".join(f"Fact {i} is {i * i}." for i in range(60))


def task(tmp_path, *lines):
    (tmp_path / "squad.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return recall.Recall("squad", tmp_path)


def test_a_short_prompt_is_not_cut(tmp_path):
    squad = task(tmp_path, {"context": "A cat sat.", "question": "It sat on a", "value": "mat"})
    made = squad.sample(ByteTokenizer(), 256, 0, 0)
    assert made.prompt == "A cat sat. It sat on a"
    assert made.references == ("mat",) and made.tokens[0] == ByteTokenizer().bos_id
    assert len(made.tokens) + made.tokens_to_generate <= 256


def test_a_cut_keeps_the_question_of_the_published_form(tmp_path):
    """The published form has one text, with the question after its last line break."""
    squad = task(tmp_path, {"text": f"{CONTEXT}\nFact 59 is", "value": "3481"})
    made = squad.sample(ByteTokenizer(), 200, 0, 0)
    assert made.prompt.endswith("\nFact 59 is") and "3481" in made.prompt
    whole = squad.sample(ByteTokenizer(), 4096, 0, 0)
    assert whole.prompt == f"{CONTEXT}\nFact 59 is"


@pytest.mark.parametrize("number", [0, 17, 30, 59])
@pytest.mark.parametrize("length", [150, 300, 900])
def test_a_cut_contains_the_answer(tmp_path, number, length):
    value = f"Fact {number} is {number * number}"
    squad = task(tmp_path, {"context": CONTEXT, "question": "So:", "value": value})
    made = squad.sample(ByteTokenizer(), length, 0, 0)
    assert value in made.prompt and made.prompt.endswith(". So:")
    assert len(made.tokens) + made.tokens_to_generate <= length
    cut = made.prompt.removesuffix(". So:")
    assert cut in CONTEXT
    before, after = cut.split(value, 1)
    if before and after and not CONTEXT.startswith(cut) and not CONTEXT.endswith(cut + "."):
        assert abs(len(before) - len(after) - len(value)) <= 4  # the answer begins in the middle


def test_every_line_is_sampled_once(tmp_path):
    lines = [{"context": "c", "question": "q", "answers": [f"a{i}", "b"]} for i in range(5)]
    squad = task(tmp_path, *lines)
    drawn = [squad.sample(ByteTokenizer(), 256, 3, i).references[0] for i in range(5)]
    assert sorted(drawn) == [f"a{i}" for i in range(5)]


def test_a_line_ends_at_a_newline_alone(tmp_path):
    """JSON text may hold U+2028, U+2029 and U+0085, at which str.splitlines cuts."""
    context = "One\u2028two\u2029three\x85four"
    line = {"context": context, "question": "q", "value": "v"}
    (tmp_path / "squad.jsonl").write_bytes(
        "\r\n".join(json.dumps(line, ensure_ascii=False) for _ in range(3)).encode()
    )
    read = recall.read(tmp_path / "squad.jsonl")
    assert [cloze.context for cloze in read] == [context] * 3


@pytest.mark.parametrize(
    "data, words",
    [
        (b"\xef\xbb\xbf{}", "line 1: malformed JSON .*byte order mark"),
        (b'{"text": "a", "value": "b"}\n\n{"text": "a", "text": "c"}', "line 3.*'text' twice"),
        (b'{"text": "a", "value": "b"}\n{"text": "\xff"}', "line 2: invalid UTF-8 at byte 10"),
        (b'{"text": "a", "value": "b"}\n{"text": ', "line 2: malformed JSON"),
        (b'{"text": "a", "answers": "Paris"}', r"line 1: needs .* \(a list of texts\)"),
        (b'{"text": "a", "answers": {"Paris": 1}}', "line 1: needs `value` or `answers`"),
        (b'{"text": "a", "answers": [null]}', "line 1: needs `value` or `answers`"),
        (b'{"text": "a", "value": true}', "line 1: needs `value` or `answers`"),
        (b"[" * 100_000, "line 1: malformed JSON"),
    ],
)
def test_a_damaged_line_is_named(data, words, tmp_path):
    (tmp_path / "squad.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=words):
        recall.read(tmp_path / "squad.jsonl")


def test_bad_files_and_lengths_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone.*cannot be read"):
        recall.Recall("squad", tmp_path / "gone").sample(ByteTokenizer(), 256, 0, 0)
    with pytest.raises(DataError, match="line 1: needs `value`"):
        task(tmp_path, {"text": "no answer"}).sample(ByteTokenizer(), 256, 0, 0)
    recall.read.cache_clear()
    long = task(tmp_path, {"context": "c" * 400, "question": "q" * 300, "value": "v"})
    with pytest.raises(UserError, match="does not fit 256 tokens"):
        long.sample(ByteTokenizer(), 256, 0, 0)

"""Files of questions: what is no question, answer or document is refused in one sentence."""

import json

import pytest

from hybridlm.errors import DataError
from hybridlm.evals.questions import read_questions


def squad(answers, question="q?"):
    entry = {"question": question, "answers": answers}
    return {"data": [{"paragraphs": [{"context": "A cat sat.", "qas": [entry]}]}]}


def hotpot(**changed):
    entry = {
        "question": "q?",
        "answer": "yes",
        "supporting_facts": [["T", 0]],
        "context": [["T", ["A cat.", " It sat."]]],
    }
    return [entry | changed]


@pytest.mark.parametrize("value", [squad([{"text": "cat"}, {"text": "cat"}]), hotpot(answer="cat")])
def test_both_forms_are_read(value, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps(value))
    (question,) = read_questions(tmp_path / "q.json").questions
    assert question.answers == ("cat",) and question.gold == (0,)


@pytest.mark.parametrize(
    "value",
    [
        squad("cat"),
        squad({"text": ["cat"], "answer_start": [2]}),
        squad([{"text": ["cat"]}]),
        squad([{"text": None}]),
        squad([{"text": "cat"}], question=3),
        hotpot(answer=None),
        hotpot(answer=["cat"]),
        hotpot(context="abc"),
        hotpot(context=[["T"]]),
        hotpot(supporting_facts=["T"]),
        3,
    ],
)
def test_a_file_of_another_form_is_refused(value, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"q\.json: neither SQuAD's form .* nor HotpotQA's"):
        read_questions(tmp_path / "q.json")

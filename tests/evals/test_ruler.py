"""RULER's tasks have their published parameters: counts, depths, uniqueness, length, answers.

Parsers that are independent of the generators find the answers in the prompts.
"""

import collections
import json
import re

import numpy as np
import pytest

from hybridlm.errors import DataError, UserError
from hybridlm.evals import ruler
from hybridlm.evals.ruler_niah import DEPTHS
from hybridlm.evals.words import ADJECTIVES, NOUNS, text_words

# task: (haystack, key, value, keys, values per key, queries), from arXiv 2404.06654
NIAH = {
    "niah_single_1": ("noise", "words", "numbers", 1, 1, 1),
    "niah_single_2": ("text", "words", "numbers", 1, 1, 1),
    "niah_single_3": ("text", "words", "uuids", 1, 1, 1),
    "niah_multikey_1": ("text", "words", "numbers", 4, 1, 1),
    "niah_multikey_2": ("needles", "words", "numbers", None, 1, 1),
    "niah_multikey_3": ("needles", "uuids", "uuids", None, 1, 1),
    "niah_multivalue": ("text", "words", "numbers", 1, 4, 1),
    "niah_multiquery": ("text", "words", "numbers", 4, 1, 4),
}
FORMS = {
    "words": r"[a-z]+-[a-z]+",
    "numbers": r"[1-9][0-9]{6}",
    "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
}
TO_GENERATE = {**dict.fromkeys(NIAH, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
LENGTHS = {"bytes": {"cwe": 6000}, "bpe": {"cwe": 4096}}


def draw(tokenizers, name, task, index, seed=0):
    length = LENGTHS[name].get(task, 1500 if name == "bytes" else 1024)
    return ruler.tasks()[task].sample(tokenizers[name], length, seed, index)


def test_there_are_thirteen_tasks():
    assert set(ruler.NAMES) == set(TO_GENERATE) == set(ruler.tasks()) and len(ruler.NAMES) == 13
    for name, task in ruler.tasks().items():
        assert task.tokens_to_generate == TO_GENERATE[name]
        assert task.metric == ("any" if name.startswith("qa") else "all")


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@pytest.mark.parametrize("task", ruler.NAMES)
def test_samples_nearly_fill_their_length(tokenizers, name, task):
    """Prompt, prefix and answer fit the length and leave less than a unit of haystack."""
    tokenizer = tokenizers[name]
    for index in range(3):
        s = draw(tokenizers, name, task, index)
        used = len(s.tokens) + TO_GENERATE[task]
        assert s.tokens[0] == tokenizer.bos_id
        np.testing.assert_array_equal(s.tokens[1:], tokenizer.encode(s.prompt + s.answer_prefix))
        unit = 280 if task.startswith("qa") else 120
        assert s.length - unit <= used <= s.length
        for spans in (s.needle_spans, s.value_spans):
            assert all(0 < a < b <= len(s.tokens) for a, b in spans)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@pytest.mark.parametrize("task", NIAH)
def test_needle_tasks_have_the_published_parameters(tokenizers, name, task):
    haystack, key, value, keys, values, queries = NIAH[task]
    tokenizer = tokenizers[name]
    for index in range(3):
        s = draw(tokenizers, name, task, index)
        form = rf"One of the special magic {value} for ({FORMS[key]}) is: ({FORMS[value]})\."
        found = re.findall(form, s.prompt)
        if keys is None:
            assert len(found) > 3
        else:
            assert len(found) == keys * values
        by_key = collections.defaultdict(list)
        for k, v in found:
            by_key[k].append(v)
        assert all(len(v) == values for v in by_key.values())
        assert len(by_key) == (keys or len(found))
        everything = [v for _, v in found] + list(by_key)
        assert len(set(everything)) == len(everything)
        question = s.prompt.rpartition("\n")[2]
        asked = re.findall(FORMS[key], question.partition(" for ")[2])
        assert len(asked) == queries
        assert sorted(v for k in asked for v in by_key[k]) == sorted(s.references)
        assert all(k in s.answer_prefix for k in asked)
        assert set(s.depths) <= set(DEPTHS) and len(set(s.depths)) == len(s.references)
        for (a, b), (c, d), wanted in zip(s.needle_spans, s.value_spans, s.references):
            assert a <= c < d <= b
            assert f"is: {wanted}." in tokenizer.decode(s.tokens[a:b])
            assert wanted in tokenizer.decode(s.tokens[c:d])
        if key == "words":
            left, right = asked[0].split("-")
            assert left in ADJECTIVES and right in NOUNS


def test_all_forty_depths_are_used(tokenizers):
    assert len(set(DEPTHS)) == 40 and DEPTHS[0] == 0 and DEPTHS[-1] == 100
    assert DEPTHS == tuple(round(100 * i / 39) for i in range(40))
    seen = {draw(tokenizers, "bytes", "niah_single_1", i).depths[0] for i in range(300)}
    assert seen == set(DEPTHS)


def test_a_needle_is_at_its_depth(tokenizers):
    for index in range(20):
        s = draw(tokenizers, "bytes", "niah_single_1", index)
        first = s.prompt.index("One of")
        head, end = s.prompt.index("\n") + 1, s.prompt.rindex("\n")
        hay = end - head - (s.prompt.index(".", first) + 1 - first)
        assert abs((first - head) / hay - s.depths[0] / 100) < 30 / hay


def test_variable_tracking_answers_are_the_chain(tokenizers):
    for index in range(4):
        s = draw(tokenizers, "bytes", "vt", index)
        value = re.search(r"hold the value (\d{5})\?", s.prompt)[1]
        holds, order = set(), []
        for new, old in re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})\.", s.prompt):
            if old == value or old in holds:
                holds.add(new)
                order.append(new)
        assert tuple(order) == s.references and len(order) == 5
        assert list(s.depths) == sorted(s.depths)
        for (a, b), wanted in zip(s.value_spans, s.references):
            assert tokenizers["bytes"].decode(s.tokens[a:b]) == wanted


def test_common_words_have_their_counts(tokenizers):
    s = draw(tokenizers, "bpe", "cwe", 1)
    listed = re.findall(r"(\d+)\. ([a-z]+\d*)", s.prompt)
    assert [int(i) for i, _ in listed] == list(range(1, len(listed) + 1))
    counts = collections.Counter(word for _, word in listed)
    assert collections.Counter(counts.values())[30] == 10
    assert set(counts.values()) == {30, 3}
    assert {w for w, c in counts.items() if c == 30} == set(s.references)
    assert set(counts) <= set(text_words()) and len(counts) >= 20
    for word in s.references:  # part of no other word
        assert sum(word in other for other in counts) == 1


def test_frequent_words_follow_the_power_law(tokenizers):
    for index in range(3):
        s = draw(tokenizers, "bytes", "fwe", index)
        body = s.prompt.split("\n")[1].split(" ")
        counts = collections.Counter(body)
        ranked = [word for word, _ in counts.most_common()]
        assert ranked[0] == "..." and tuple(ranked[1:4]) == s.references
        figures = [count for _, count in counts.most_common(5)]
        assert figures[3] > figures[4]
        for rank in (2, 3, 4):  # alpha 2.0
            assert figures[rank - 1] == pytest.approx(figures[0] / rank**2, abs=1.5)
        assert all(re.fullmatch(r"[a-z]{6}", word) for word in ranked[1:])


def test_own_questions_are_answered_by_their_documents(tokenizers):
    for index in range(6):
        s = draw(tokenizers, "bytes", "qa_1", index)
        year = re.search(r"Question: Who gave the address of (\d{4})", s.prompt)[1]
        author = re.search(
            rf"The address of {year} is (?:the first|one) by ([A-Za-z ]+)\.", s.prompt
        )
        assert s.references == (author[1],)
        s = draw(tokenizers, "bytes", "qa_2", index)
        year = re.search(r"whoever gave the address of (\d{4})", s.prompt)[1]
        author = re.search(rf"address of {year} is one by ([A-Za-z ]+)\.", s.prompt)[1]
        first = re.search(rf"The address of (\d{{4}}) is the first by {author}\.", s.prompt)[1]
        assert s.references == (first,) and len(s.needle_spans) == 2


def test_squad_and_hotpotqa_files_are_read(tokenizers, tmp_path):
    squad = {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": f"City {i} lies on river {i * 7}.",
                        "qas": [
                            {
                                "question": f"On which river lies city {i}?",
                                "answers": [{"text": f"river {i * 7}"}],
                            },
                            {"question": "Impossible?", "answers": [], "is_impossible": True},
                        ],
                    }
                    for i in range(1, 40)
                ]
            }
        ]
    }
    hotpot = [
        {
            "question": "q?",
            "answer": "yes",
            "supporting_facts": [["A", 0], ["B", 0]],
            "context": [["A", ["a1.", " a2."]], ["B", ["b."]], ["C", ["c."]]],
        }
    ]
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    (tmp_path / "hotpot.json").write_text(json.dumps(hotpot))
    tasks = ruler.tasks(tmp_path / "squad.json", tmp_path / "hotpot.json")
    tokenizer = tokenizers["bytes"]
    asked = set()
    for index in range(39):
        s = tasks["qa_1"].sample(tokenizer, 800, 0, index)
        city = re.search(r"lies city (\d+)", s.prompt)[1]
        asked.add(city)
        assert f"City {city} lies on {s.references[0]}." in s.prompt
        (span,) = s.needle_spans
        assert tokenizer.decode(s.tokens[slice(*span)]) == f"City {city} lies on {s.references[0]}."
    assert len(asked) == 39  # every question occurs once before any is repeated
    s = tasks["qa_2"].sample(tokenizer, 256, 0, 0)
    assert "A. a1. a2." in s.prompt and "B. b." in s.prompt and s.references == ("yes",)
    (tmp_path / "bad.json").write_text('{"a": 1}')
    for path, sentence in (("gone.json", "cannot be read"), ("bad.json", "neither SQuAD's form")):
        with pytest.raises(DataError, match=sentence):
            ruler.tasks(tmp_path / path)["qa_1"].sample(tokenizer, 800, 0, 0)


@pytest.mark.parametrize("task", ruler.NAMES)
def test_a_sample_depends_on_task_length_seed_and_index(tokenizers, task):
    one, again = (draw(tokenizers, "bpe", task, 1) for _ in range(2))
    assert one.prompt == again.prompt and one.references == again.references
    assert one.needle_spans == again.needle_spans
    assert draw(tokenizers, "bpe", task, 2).prompt != one.prompt
    assert draw(tokenizers, "bpe", task, 1, seed=1).prompt != one.prompt


@pytest.mark.parametrize("task", ruler.NAMES)
def test_the_refusal_of_a_short_length_names_one_that_fits(tokenizers, task):
    tokenizer = tokenizers["bytes"]
    with pytest.raises(UserError, match=f"{task} does not fit 100 tokens") as error:
        ruler.tasks()[task].sample(tokenizer, 100, 0, 0)
    needed = int(re.search(r"at least (\d+)", str(error.value))[1])
    slack = 1500 if task == "cwe" else 60  # another length draws other words
    assert ruler.tasks()[task].sample(tokenizer, needed + slack, 0, 0).length == needed + slack

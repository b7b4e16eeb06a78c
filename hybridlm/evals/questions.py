"""Questions and the documents that answer them: SQuAD and HotpotQA files, and sets of our own.

Our own two sets ask about the years and authors of the bundled corpus. A question of the first set
needs one document (as in SQuAD), a question of the second needs two (as in HotpotQA).
"""

import functools
import pathlib
from typing import Any, NamedTuple

from hybridlm.errors import DataError
from hybridlm.evals import haystack
from hybridlm.settings.json_text import parse_json
from hybridlm.storage import open_path

EXCERPT = 24  # words of an address that its document quotes


class Question(NamedTuple):
    """`answers`: each is correct; `gold`: indices of the documents that contain the answer."""

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]


class QuestionSet(NamedTuple):
    """Questions and all documents; those that are not gold for a question are its distractors."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


def read_questions(path: pathlib.Path | str) -> QuestionSet:
    """Reads a SQuAD (v1 or v2, without unanswerable questions) or HotpotQA JSON file.

    Raises:
      DataError: if the file is missing or has another form.
    """
    path = open_path(path)
    try:
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"questions {path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"questions {path}: malformed JSON ({error})") from None
    try:
        found = _squad(value) if isinstance(value, dict) else _hotpot(value)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise DataError(
            f"questions {path}: neither SQuAD's form (data, paragraphs, qas) nor HotpotQA's (a"
            " list with question, answer, supporting_facts and context)"
        ) from None
    if not found.questions:
        raise DataError(f"questions {path}: no question has an answer")
    return found


def answer_text(value: Any) -> str:
    """An answer of a JSON file: a text, or a number.

    Raises:
      TypeError: if it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"an answer is {value!r}")
    return str(value)


def _squad(value: dict[str, Any]) -> QuestionSet:
    documents: dict[str, int] = {}
    questions = []
    for article in value["data"]:
        for paragraph in article["paragraphs"]:
            place = documents.setdefault(_plain(paragraph["context"]), len(documents))
            for entry in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer_text(a["text"]) for a in entry["answers"]))
                if answers and not entry.get("is_impossible"):
                    questions.append(Question(_plain(entry["question"]), answers, (place,)))
    return QuestionSet(tuple(documents), tuple(questions))


def _hotpot(value: list[dict[str, Any]]) -> QuestionSet:
    documents: dict[str, int] = {}
    questions = []
    for entry in value:
        supporting = {title for title, _ in entry["supporting_facts"]}
        gold = []
        for title, sentences in entry["context"]:
            text = _plain(f"{title}. {''.join(sentences)}")
            place = documents.setdefault(text, len(documents))
            if title in supporting:
                gold.append(place)
        answer = (answer_text(entry["answer"]),)
        questions.append(Question(_plain(entry["question"]), answer, tuple(gold)))
    return QuestionSet(tuple(documents), tuple(questions))


@functools.cache
def own_questions(hops: int) -> QuestionSet:
    """Our own set: who gave a year's address (1 hop), and when that person gave the first (2)."""
    given = haystack.addresses()
    years = [a.year for a in given]
    first = {}
    for address in given:
        first.setdefault(address.author, address.year)
    documents, places = [], {}
    for address in given:
        opening = " ".join(address.text.split(" ")[:EXCERPT])
        order = "the first" if first[address.author] == address.year else "one"
        documents.append(
            f"The address of {address.year} is {order} by {address.author}. It opens: {opening}"
        )
        places.setdefault((address.year, address.author), len(documents) - 1)
    questions = []
    for address in given:
        if years.count(address.year) > 1:
            continue
        here = places[address.year, address.author]
        if hops == 1:
            text = f"Who gave the address of {address.year}?"
            questions.append(Question(text, (address.author,), (here,)))
        elif first[address.author] != address.year:
            text = f"In which year did whoever gave the address of {address.year} give a first one?"
            began = first[address.author]
            gold = (here, places[began, address.author])
            questions.append(Question(text, (str(began),), gold))
    return QuestionSet(tuple(documents), tuple(questions))


def _plain(text: str) -> str:
    return " ".join(text.split())

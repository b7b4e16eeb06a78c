"""The recall tasks of BASED and JRT on local files: a document and a cloze question about it.

FDA, SWDE, SQuAD, DROP, NQ and TriviaQA in the form of arXiv 2402.18668 and 2407.05483. Each line of
a file NAME.jsonl has the answer as `value` (or `answers`, a list), and either `context` and
`question` or one `text` with the question after its last line break (as in the published sets). The
prompt is context, ". " and question, or `text`. The score is 1 if the greedy continuation, up to
its first line break, contains the answer, ignoring case.

As in the papers, a context that is too long is cut to (length - 50) tokens centred on the first
occurrence of the answer, so that it always contains the answer. Scores of cut and uncut prompts are
not comparable.
"""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import numpy as np

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError, UserError
from hybridlm.evals.answered import Answered
from hybridlm.evals.questions import answer_text
from hybridlm.evals.sample import Sample, generator
from hybridlm.settings.json_text import parse_json

NAMES = ("fda", "swde", "squad", "drop", "nq", "triviaqa")
TOKENS_TO_GENERATE = 48
MARGIN = 50  # tokens left for question and answer when the context is cut


class Cloze(NamedTuple):
    """A line of a file; `joint` is the text between context and question."""

    context: str
    joint: str
    question: str
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Recall:
    """One of the tasks; sample `index` is line `index` of a permutation of the file's lines."""

    name: str
    folder: pathlib.Path
    tokens_to_generate: int = TOKENS_TO_GENERATE
    metric: str = "any"

    def sample(self, tokenizer: Tokenizer, length: int, seed: int, index: int) -> Sample:
        """The sample `index`.

        Raises:
          UserError: if the question alone does not fit `length`. DataError: see `read`.
        """
        lines = read(self.folder / f"{self.name}.jsonl")
        order = generator(self.name, 0, seed, 0).permutation(len(lines))
        cloze = lines[order[index % len(order)]]
        budget = length - self.tokens_to_generate - 1
        prompt = cloze.context + cloze.joint + cloze.question
        ids = tokenizer.encode(prompt)
        if len(ids) > budget:
            tail = len(tokenizer.encode(cloze.joint + cloze.question))
            window = min(length - MARGIN, budget) - tail
            if window < 1:
                raise UserError(
                    f"{self.name} does not fit {length} tokens: the question of sample {index}"
                    f" has {tail}"
                )
            prompt = _cut(tokenizer, cloze, window) + cloze.joint + cloze.question
            ids = tokenizer.encode(prompt)[-budget:]
        tokens = np.concatenate([[tokenizer.bos_id], ids]).astype(np.int32)
        return Sample(
            self.name,
            length,
            seed,
            index,
            prompt,
            "",
            cloze.answers,
            (),
            tokens,
            (),
            (),
            self.tokens_to_generate,
        )


@functools.lru_cache(maxsize=16)
def read(path: pathlib.Path) -> tuple[Cloze, ...]:
    """The lines of a file.

    Raises:
      DataError: if the file cannot be read or a line has another form; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"recall task {path}: cannot be read ({error.strerror})") from None
    found = []
    # Not str.splitlines, which also splits at characters that JSON text may hold.
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"recall task {path}, line {number}"
        try:
            entry = parse_json(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: invalid UTF-8 at byte {error.start}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: malformed JSON ({error})") from None
        try:
            found.append(_cloze(entry))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{where}: needs `value` or `answers` (a list of texts), and `text` or"
                " `context` with `question`"
            ) from None
    if not found:
        raise DataError(f"recall task {path}: has no line")
    return tuple(found)


def _cloze(entry: dict) -> Cloze:
    given = entry["answers"] if "answers" in entry else [entry["value"]]
    if not isinstance(given, list):  # of a text each letter would be an answer
        raise TypeError("no list of answers")
    answers = tuple(answer_text(answer).strip() for answer in given)
    if not answers or not all(answers):
        raise ValueError("no answer")
    if "context" in entry and "question" in entry:
        context = entry["context"].strip().removesuffix(".")
        return Cloze(context, ". ", entry["question"].strip(), answers)
    context, joint, question = entry["text"].rstrip().rpartition("\n")
    return Cloze(context, joint, question, answers)


def _cut(tokenizer: Tokenizer, cloze: Cloze, window: int) -> str:
    """`window` tokens of the context around its first answer, or its last tokens without one."""
    places = [cloze.context.lower().find(answer.lower()) for answer in cloze.answers]
    places = [place for place in places if place >= 0]
    ids = tokenizer.encode(cloze.context)
    middle = len(tokenizer.encode(cloze.context[: min(places)])) if places else len(ids)
    first = min(max(middle - window // 2, 0), max(len(ids) - window, 0))
    return tokenizer.decode(ids[first : first + window])


EVALUATIONS = tuple(
    Answered(
        name,
        "a cloze question that a document answers",
        "`--recall` names a folder of NAME.jsonl; below; arXiv 2402.18668, 2407.05483",
        lambda settings, name=name: Recall(name, settings.recall),
        needs=("recall",),
        until="\n",
    )
    for name in NAMES
)

"""RULER's question answering: documents that answer a question, among distractors.

arXiv 2404.06654, section 3.4: qa_1 uses SQuAD, qa_2 HotpotQA. Without a file, both use our own
questions (`questions.own_questions`).
"""

import dataclasses
import pathlib

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.evals.questions import QuestionSet, own_questions, read_questions
from hybridlm.evals.sample import Draft, Sample, fit, generator


@dataclasses.dataclass(frozen=True)
class QuestionAnswering:
    """qa: the answer must contain any of the references.

    Attributes:
      hops: hops of our own questions, used without a file.
      help, definition: see `hybridlm.evals.task.Task`.
      path: SQuAD or HotpotQA JSON file.
    """

    name: str
    hops: int
    help: str
    definition: str
    path: pathlib.Path | None = None
    tokens_to_generate: int = 32
    metric: str = "any"

    def questions(self) -> QuestionSet:
        """The questions to draw from. Raises DataError for an unreadable file."""
        return own_questions(self.hops) if self.path is None else read_questions(self.path)

    def sample(self, tokenizer: Tokenizer, length: int, seed: int, index: int) -> Sample:
        """The sample `index`. Raises UserError if the task does not fit `length`."""
        rng = generator(self.name, length, seed, index)
        known = self.questions()
        # Every question occurs once before any is repeated.
        order = generator(self.name, 0, seed, 0).permutation(len(known.questions))
        question = known.questions[order[index % len(order)]]
        distractors = [i for i in range(len(known.documents)) if i not in question.gold]
        distractors = [distractors[i] for i in rng.permutation(len(distractors))]
        ranks = rng.random(len(known.documents))

        def make(units: int) -> Draft:
            # Distractors are repeated once all are used, as in RULER.
            chosen = (
                [distractors[i % len(distractors)] for i in range(units)] if distractors else []
            )
            places = [*question.gold, *chosen]
            rank = [ranks[place] + i // len(ranks) for i, place in enumerate(places)]
            places = [places[i] for i in sorted(range(len(places)), key=rank.__getitem__)]
            head = "Answer the question from these documents, with the answer alone.\n"
            body, spans = head, []
            for number, place in enumerate(places, 1):
                body += f"\nDocument {number}:\n"
                if place in question.gold:
                    spans.append((len(body), len(body) + len(known.documents[place])))
                body += known.documents[place] + "\n"
            return Draft(
                f"{body}\nQuestion: {question.text}", " Answer:", question.answers, tuple(spans)
            )

        return fit(
            make,
            tokenizer,
            task=self.name,
            length=length,
            seed=seed,
            index=index,
            tokens_to_generate=self.tokens_to_generate,
        )


_OWN = "without it, our own questions about the years and authors of the addresses"
TASKS = (
    QuestionAnswering(
        "qa_1",
        1,
        "questions that one document answers, among distractors",
        f"RULER: `--squad` names a JSON file in SQuAD's form; {_OWN}",
    ),
    QuestionAnswering(
        "qa_2",
        2,
        "questions that two documents answer, among distractors",
        f"RULER: `--hotpotqa` names a JSON file in HotpotQA's form; {_OWN}",
    ),
)

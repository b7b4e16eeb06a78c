"""The prompts of the probes: the evaluation "needle", with the answer behind each."""

import numpy as np

from hybridlm.data import Tokenizer
from hybridlm.evals.needle import NeedleInAHaystack
from hybridlm.evals.sample import token_spans
from hybridlm.probes.prompts import Prompt, Prompts

#: The paper's eight values: alike but for the last digit, or all different (arXiv 2606.15378).
CLASSES = {
    "hard": tuple(str(31415920 + i) for i in range(8)),
    "easy": (
        "1234567",
        "2345678",
        "3456789",
        "4567890",
        "5678901",
        "6789012",
        "7890123",
        "8901234",
    ),
}


def needle_prompts(
    tokenizer: Tokenizer, length: int, count: int, seed: int = 0, choices: tuple[str, ...] = ()
) -> tuple[Prompts, np.ndarray]:
    """Needles in held-out text, answered; and the number of each value among `choices`.

    The samples are those of the evaluation "needle", followed by the answer; the needle is the
    value's tokens where they first stand.

    Raises:
      UserError: where they do not fit `length`.
    """
    task, made, labels = NeedleInAHaystack(choices=choices), [], []
    for index in range(count):
        sample = task.sample(tokenizer, length, seed, index)
        (value,) = sample.references
        text = f"{sample.prompt}{sample.answer_prefix} {value}"
        ids = tokenizer.encode(text)
        found = sample.prompt.index(f"is {value}.") + len("is ")
        spans = [(found, found + len(value)), (len(text) - len(value), len(text))]
        needle, answer = token_spans(tokenizer, ids, text, spans)
        tokens = np.concatenate([[tokenizer.bos_id], ids]).astype(np.int32)
        made.append(Prompt(tokens, [needle], answer))
        labels.append(choices.index(value) if choices else -1)
    return Prompts.of(made), np.asarray(labels)

"""The prompts of the probes: samples of the evaluation "needle", each followed by its answer."""

import numpy as np

from hybridlm.data import Tokenizer
from hybridlm.evals.needle import NeedleInAHaystack
from hybridlm.evals.sample import token_spans
from hybridlm.probes.prompts import Prompt, Prompts

#: The paper's eight values (arXiv 2606.15378): "hard" ones differ only in the last digit.
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
    """Needle prompts followed by their answers, and the index of each value in `choices`.

    The samples are those of the evaluation "needle". A prompt's needle span covers the tokens of
    the value's first occurrence.

    Raises:
      UserError: if the prompts do not fit `length`.
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

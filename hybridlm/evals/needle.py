"""Needle in a haystack: one key and its value in running text, by depth and length.

The grid is that of G. Kamradt's pressure test as used in arXiv 2404.15574 (section 2): lengths by
10 evenly spaced depths from 0 to 100%. The value is a number of 7 digits. The prompt ends with the
needle's words before the value, so that a base model can answer by copying.
"""

import dataclasses

import numpy as np

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.evals.answered import Answered
from hybridlm.evals.haystack import TextHaystack, insert
from hybridlm.evals.ruler_niah import names
from hybridlm.evals.sample import Draft, Sample, fit, generator

DEPTHS = tuple(float(d) for d in np.round(np.linspace(0, 100, 10), 1))  # per cent


@dataclasses.dataclass(frozen=True)
class NeedleInAHaystack:
    """The task "needle": sample `index` has depth number `index` modulo the number of depths.

    Attributes:
      choices: values to draw from (the classes of a probe); empty for any number of 7 digits.
    """

    name: str = "needle"
    depths: tuple[float, ...] = DEPTHS
    tokens_to_generate: int = 32
    metric: str = "all"
    choices: tuple[str, ...] = ()

    def sample(self, tokenizer: Tokenizer, length: int, seed: int, index: int) -> Sample:
        """The sample `index`. Raises UserError if the task does not fit `length`."""
        rng = generator(self.name, length, seed, index)
        depth = self.depths[index % len(self.depths)]
        (key,), (value,) = names(rng, "words", 1), names(rng, "numbers", 1)
        if self.choices:
            value = self.choices[rng.integers(len(self.choices))]
        source = TextHaystack(rng)

        def make(units: int) -> Draft:
            sentence = f"The magic number for {key} is {value}."
            filled = insert(source.sentences(units), [sentence], [depth])
            ((first, end),) = filled.spans
            return Draft(
                filled.text,
                f"\nThe magic number for {key} is",
                (value,),
                ((first, end),),
                ((end - 1 - len(value), end - 1),),
                (depth,),
            )

        return fit(
            make,
            tokenizer,
            task=self.name,
            length=length,
            seed=seed,
            index=index,
            tokens_to_generate=self.tokens_to_generate,
            min_units=1,
        )


NEEDLE = Answered(
    "needle",
    "a number of 7 digits in held-out text",
    "10 depths from 0 to 100%, `--samples` at each; the prompt ends with the needle's own words, so"
    " that a base model can answer by copying; arXiv 2404.15574, section 2",
    lambda settings: NeedleInAHaystack(),
    repeats=len(DEPTHS),
)

"""RULER's tracking and aggregation tasks: variable tracking, common words, frequent words.

Parameters: arXiv 2404.06654, sections 3.2 and 3.3 and its code (`synthetic.yaml`). The wording of
the questions is ours, and the prompts contain no worked example.
"""

import dataclasses
import string

import numpy as np

from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import UserError
from hybridlm.evals.haystack import NoiseHaystack, insert
from hybridlm.evals.sample import Draft, Sample, fit, generator
from hybridlm.evals.words import text_words

ZETA_TERMS = 100_000  # summed terms of zeta(alpha), the normalizer of `FrequentWords`


@dataclasses.dataclass(frozen=True)
class VariableTracking:
    """vt: a value is assigned to a variable, that variable to another, and so on, in noise.

    A chain of `hops` hops has hops + 1 variables; all variables of the first chain are the answer.
    """

    name: str = "vt"
    chains: int = 1
    hops: int = 4
    tokens_to_generate: int = 30
    metric: str = "all"
    help: str = "variables assigned in a chain of 4 hops, in noise"
    definition: str = "RULER: all 5 variables are the answer"

    def sample(self, tokenizer: Tokenizer, length: int, seed: int, index: int) -> Sample:
        """The sample `index`. Raises UserError if the task does not fit `length`."""
        rng = generator(self.name, length, seed, index)
        count = self.chains * (self.hops + 1)
        letters = np.array(list(string.ascii_uppercase))
        variables: dict[str, None] = {}
        while len(variables) < count:
            variables["".join(rng.choice(letters, 5))] = None
        names = list(variables)
        values = rng.choice(np.arange(10_000, 100_000), self.chains, replace=False)
        statements, depths = [], []
        for chain in range(self.chains):
            mine = names[chain * (self.hops + 1) : (chain + 1) * (self.hops + 1)]
            statements.append(f"VAR {mine[0]} = {values[chain]}.")
            statements += [f"VAR {new} = VAR {old}." for old, new in zip(mine, mine[1:])]
            depths += np.sort(rng.uniform(0, 100, self.hops + 1)).tolist()
        source, asked = NoiseHaystack(), range(self.hops + 1)
        references = tuple(names[i] for i in asked)

        def make(units: int) -> Draft:
            head = "This text assigns values to variables. Follow them through it.\n"
            filled = insert(source.sentences(units), statements, depths)
            question = f"\nWhich variables hold the value {values[0]}?"
            spans = [
                (len(head) + filled.spans[i][0], len(head) + filled.spans[i][1]) for i in asked
            ]
            names_at = [(first + 4, first + 4 + len(r)) for (first, _), r in zip(spans, references)]
            prefix = f" The {len(references)} variables that hold the value {values[0]} are:"
            return Draft(
                head + filled.text + question,
                prefix,
                references,
                tuple(spans),
                tuple(names_at),
                tuple(depths[i] for i in asked),
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


@dataclasses.dataclass(frozen=True)
class CommonWords:
    """cwe: `common` words occur `common_times` each, all others `uncommon_times`; name the former.

    The words come from the bundled text and form a numbered list in random order. There are at
    least `least_uncommon` uncommon words; once the text's vocabulary is used up, words get a
    number.
    """

    name: str = "cwe"
    common: int = 10
    common_times: int = 30
    uncommon_times: int = 3
    least_uncommon: int = 10
    tokens_to_generate: int = 120
    metric: str = "all"
    help: str = "10 words 30 times each, others 3 times"
    definition: str = "RULER: the 10 are the answer"

    def sample(self, tokenizer: Tokenizer, length: int, seed: int, index: int) -> Sample:
        """The sample `index`. Raises UserError if the task does not fit `length`."""
        rng = generator(self.name, length, seed, index)
        vocabulary = text_words()
        words = [vocabulary[i] for i in rng.permutation(len(vocabulary))]
        # No common word is part of another word: string matching would find it in a wrong answer.
        common: list[str] = []
        for word in words:
            if len(common) < self.common and not any(word in w or w in word for w in common):
                common.append(word)
        rest = [w for w in words if not any(c in w for c in common)]
        order_seed = int(rng.integers(2**31))

        def make(units: int) -> Draft:
            uncommon = [f"{rest[i % len(rest)]}{i // len(rest) or ''}" for i in range(units)]
            listed = np.repeat(
                np.array(common + uncommon),
                [self.common_times] * len(common) + [self.uncommon_times] * len(uncommon),
            )
            listed = np.random.default_rng(order_seed).permutation(listed)
            head = "Here is a numbered list of words; some come up more often than others.\n"
            body = " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
            question = f"\nWhat are the {len(common)} most common words in the list above?"
            prefix = f" The {len(common)} words that come up most often in the list are:"
            return Draft(head + body + question, prefix, tuple(common))

        return fit(
            make,
            tokenizer,
            task=self.name,
            length=length,
            seed=seed,
            index=index,
            tokens_to_generate=self.tokens_to_generate,
            min_units=self.least_uncommon,
        )


@dataclasses.dataclass(frozen=True)
class FrequentWords:
    """fwe: coded words with frequency rank^-alpha / zeta(alpha); name the most frequent ones.

    Rank 1 is a row of dots, which the question says to ignore; ranks 2 to `top` + 1 are the answer.
    A coded word is `letters` random letters; a sample of length L has L // 50 coded words.
    """

    name: str = "fwe"
    alpha: float = 2.0
    top: int = 3
    letters: int = 6
    tokens_to_generate: int = 50
    metric: str = "all"
    help: str = "coded words with frequency ∝ rank^−2; rank 1 is a row of dots"
    definition: str = "RULER: ranks 2 to 4 are the answer"

    def sample(self, tokenizer: Tokenizer, length: int, seed: int, index: int) -> Sample:
        """The sample `index`. Raises UserError if the task does not fit `length`."""
        rng = generator(self.name, length, seed, index)
        alphabet = np.array(list(string.ascii_lowercase))
        coded: dict[str, None] = {}
        while len(coded) < max(length // 50, self.top + 2):
            coded["".join(rng.choice(alphabet, self.letters))] = None
        words = ["...", *coded]
        order_seed = int(rng.integers(2**31))
        shares = self.shares(len(words))
        # With fewer words, the last of the top ones ties with the next.
        gap = shares[self.top] - shares[self.top + 1]
        min_units = int(np.ceil(2 / gap))

        def make(units: int) -> Draft:
            counts = np.floor(units * shares).astype(int)
            listed = np.random.default_rng(order_seed).permutation(np.repeat(words, counts))
            head = "Here is a text in code. Find out which words it uses most; dots do not count.\n"
            question = f"\nWhat are the {self.top} most frequent coded words in the text above?"
            prefix = f" The {self.top} most frequent coded words, without the dots, are:"
            references = tuple(words[1 : self.top + 1])
            return Draft(f"{head}{' '.join(listed)}{question}", prefix, references)

        return fit(
            make,
            tokenizer,
            task=self.name,
            length=length,
            seed=seed,
            index=index,
            tokens_to_generate=self.tokens_to_generate,
            min_units=min_units,
        )

    def shares(self, count: int) -> np.ndarray:
        """rank^-alpha / zeta(alpha) of the first `count` ranks."""
        if self.alpha <= 1:
            raise UserError(
                f"fwe: alpha must exceed 1 for the frequencies to sum, not {self.alpha}"
            )
        ranks = np.arange(1, ZETA_TERMS + 1, dtype=float)
        tail = ZETA_TERMS ** (1 - self.alpha) / (
            self.alpha - 1
        )  # the integral approximates the remaining terms
        return ranks[:count] ** -self.alpha / (np.sum(ranks**-self.alpha) + tail)


TASKS = (VariableTracking(), CommonWords(), FrequentWords())

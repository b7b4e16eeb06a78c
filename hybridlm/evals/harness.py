"""Evaluates a run with EleutherAI's lm-evaluation-harness, through the harness's `LM` interface.

    python -m hybridlm.evals.harness --workdir runs/demo --tasks arc_easy,lambada_openai --limit 100

Requests are sorted by length and run in batches; generation decodes from cached states. The
optional dependency `eval` installs the harness: pip install 'hybridlm[eval]'.
"""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from hybridlm.errors import RunError, UserError, exit_code
from hybridlm.evals.sample import Sample
from hybridlm.evals.scoring import (
    NOT_FINITE_SENTENCE,
    Likelihood,
    Pair,
    complete,
    continuation_likelihoods,
    continuation_pair,
)
from hybridlm.evals.settings import HarnessSettings
from hybridlm.runs import OpenedModel, open_model
from hybridlm.settings import json_text
from hybridlm.settings.describe import default_text, summary_and_meanings, type_text
from hybridlm.settings.text import read_texts
from hybridlm.storage.writing import write_text

try:
    import lm_eval
    from lm_eval import utils
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise UserError(
        "this needs lm-evaluation-harness, which is not installed: pip install 'hybridlm[eval]'"
    ) from None

MAX_NEW_TOKENS = 256  # the harness's own default


class HarnessModel(LM):
    """The `LM` interface of the harness over a run's model."""

    def __init__(self, run: OpenedModel, *, batch: int = 8, max_length: int | None = None):
        """Args:
        batch: batch size, in sequences.
        max_length: maximum tokens of prompt and answer; longer prompts lose their beginning. None
          means the training length.
        """
        super().__init__()
        self.opened, self.batch = run, batch
        self.max_length = max_length or run.length
        self.dtype: jnp.dtype = run.dtype

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation): (ln p of the continuation, whether it is greedy)."""
        pairs = [
            continuation_pair(self.opened.tokenizer, *request.args, self.max_length)
            for request in requests
        ]
        return [(likelihood.log_prob, likelihood.greedy) for likelihood in self._likelihoods(pairs)]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """ln p of each whole text after BOS, in non-overlapping windows of `max_length` tokens."""
        tokenizer, pieces, owner = self.opened.tokenizer, [], []
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=tokenizer.encode(request.args[0]).tolist(),
                prefix_token=tokenizer.bos_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                pieces.append((np.array(context, np.int32), np.array(continuation, np.int32)))
                owner.append(number)
        sums = [0.0] * len(requests)
        for number, likelihood in zip(owner, self._likelihoods(pieces)):
            sums[number] += likelihood.log_prob
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, each cut at the first of its `until` strings.

        Raises:
          UserError: if the settings ask for sampling or beam search, or the model's logits are not
            finite.
        """
        settings = [self._generation(*request.args) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: (settings[i][2], len(settings[i][0])))
        texts = [""] * len(requests)
        for start in range(0, len(order), self.batch):
            group = order[start : start + self.batch]
            samples = [_sample(settings[i][0], settings[i][2]) for i in group]
            made = complete(
                self.opened.model,
                self.opened.params,
                self.opened.tokenizer,
                samples,
                batch=self.batch,
                dtype=self.dtype,
            )
            if None in made:
                raise RunError(f"{self.opened.path}: {NOT_FINITE_SENTENCE}")
            for i, text in zip(group, made):
                ends = [text.find(stop) for stop in settings[i][1] if stop in text]
                texts[i] = text[: min(ends)] if ends else text
        return texts

    def _likelihoods(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Likelihoods of the pairs, in their order; batches are formed longest first."""
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        run = self.opened
        likelihoods = continuation_likelihoods(
            run.model, run.params, [pairs[i] for i in order], batch=self.batch, dtype=self.dtype
        )
        by_index = dict(zip(order, likelihoods))
        return [by_index[i] for i in range(len(pairs))]

    def _generation(self, context: str, settings: dict[str, Any]) -> tuple[np.ndarray, list, int]:
        """(prompt tokens, strings to stop at, tokens to generate)."""
        if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
            raise UserError(
                "the harness asks for sampling (do_sample): only greedy decoding is supported"
            )
        if settings.get("num_beams", 1) > 1:
            raise UserError(
                f"the harness asks for {settings['num_beams']} beams: only greedy decoding is"
                " supported"
            )
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        count = int(settings.get("max_gen_toks") or MAX_NEW_TOKENS)
        budget = self.max_length - count - 1
        if budget < 1:
            raise UserError(
                f"the harness asks for {count} new tokens, and max_length is {self.max_length}"
            )
        tokens = self.opened.tokenizer.encode(context)[-budget:]
        prompt = np.concatenate([[self.opened.tokenizer.bos_id], tokens]).astype(np.int32)
        return prompt, [stop for stop in until if stop], count


def _sample(prompt: np.ndarray, count: int) -> Sample:
    # Prompt lengths are rounded up to multiples of 64, so that few shapes are compiled.
    length = -(-len(prompt) // 64) * 64 + count
    return Sample("harness", length, 0, 0, "", "", (), (), prompt, (), (), count)


def _help(field: dataclasses.Field) -> str:
    """The meaning of an option, the type of its value and its default."""
    meaning = summary_and_meanings(HarnessSettings)[1][field.name].removesuffix(".")
    hint = typing.get_type_hints(HarnessSettings, include_extras=True)[field.name]
    value = type_text(hint)
    if field.default is None:  # the meaning says what it stands for
        value = value.removesuffix("`None`").removesuffix(" or ").removesuffix(",")
    elif field.default is not dataclasses.MISSING:
        value += f"; default: {default_text(field)}"
    value = value.replace("`", "").replace("'", "")
    return f"{meaning} ({value})".replace("%", "%%")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return exit_code("harness", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="harness", description=__doc__.split("\n")[0])
    for field in dataclasses.fields(HarnessSettings):
        needed = field.default is dataclasses.MISSING
        parser.add_argument(f"--{field.name}", required=needed, help=_help(field))
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    arguments = read_texts(HarnessSettings, given)
    opened = open_model(arguments.workdir, arguments.step, arguments.weights)
    model = HarnessModel(opened, batch=arguments.batch, max_length=arguments.max_length)
    results = lm_eval.simple_evaluate(
        model,
        tasks=list(arguments.tasks),
        limit=arguments.limit,
        num_fewshot=arguments.num_fewshot,
    )["results"]
    text = json_text.dumps(results, indent=2, default=str)
    if arguments.out:
        write_text(arguments.out, text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

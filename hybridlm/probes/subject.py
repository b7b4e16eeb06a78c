"""An opened model and the data that its probes read."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from hybridlm.errors import UserError
from hybridlm.evals.heldout import heldout_documents
from hybridlm.probes.heads import retrieval_heads, top_heads
from hybridlm.probes.induction import LONGEST, repeated_prompts
from hybridlm.probes.layers import mixer_names
from hybridlm.probes.needles import CLASSES, needle_prompts
from hybridlm.probes.probe import Probe
from hybridlm.probes.prompts import Prompt, Prompts
from hybridlm.probes.settings import ProbeSettings
from hybridlm.probes.table import Head
from hybridlm.runs import OpenedModel
from hybridlm.settings.names import nearest


class OpenedSubject:
    """See `hybridlm.probes.probe.Subject`; each property is computed at first use."""

    def __init__(self, opened: OpenedModel, settings: ProbeSettings):
        """Args:
        opened: the newest checkpoint; it gives the retrieval heads and the final parameters.
        """
        self.opened, self.settings = opened, settings
        self.model, self.final = opened.model, opened.params
        self.length = settings.length or opened.length
        self.options: dict[str, Any] = dict(batch=settings.batch, dtype=opened.dtype)

    def prepare(self, chosen: Sequence[Probe]) -> None:
        """Makes the data of the probes before any probe runs, so that errors come early.

        Raises:
          UserError: if prompts do not fit, text is missing, or a layer is unknown.
        """
        for name in dict.fromkeys(name for probe in chosen for name in probe.reads):
            getattr(self, name)
        _ = self.restricted

    @functools.cached_property
    def prompts(self) -> Prompts:
        settings = self.settings
        tokenizer = self.opened.tokenizer
        return needle_prompts(tokenizer, self.length, settings.samples, settings.seed)[0]

    @functools.cached_property
    def classified(self) -> tuple[Prompts, np.ndarray]:
        settings = self.settings
        return needle_prompts(
            self.opened.tokenizer,
            self.length,
            settings.classified,
            settings.seed,
            CLASSES[settings.classes],
        )

    @functools.cached_property
    def texts(self) -> Prompts:
        documents = heldout_documents(
            self.opened, self.length, self.settings.samples, "gradient_influence"
        )
        return Prompts.of([Prompt(d, [], (len(d) - 1, len(d))) for d in documents])

    @functools.cached_property
    def repeated(self) -> Prompts:
        tokenizer, settings = self.opened.tokenizer, self.settings
        size = self.model.config.vocab_size
        if len(tokenizer.pieces()) > 1:  # not the padding of the embedding
            size = min(size, tokenizer.vocab_size)
        special = {tokenizer.bos_id, tokenizer.eos_id, *tokenizer.special_tokens.values()}
        length = settings.length or min(self.length, LONGEST)
        return repeated_prompts(size, length, settings.samples, settings.seed, special)

    @functools.cached_property
    def heads(self) -> tuple[Head, ...]:
        table = retrieval_heads(self.model, self.final, self.prompts, **self.options)
        return top_heads(table, self.settings.top_k, self.settings.by)

    @functools.cached_property
    def restricted(self) -> list[list[int]]:
        names = mixer_names(self.model)
        by_name = {
            name: [i for i, n in enumerate(names) if n == name] for name in dict.fromkeys(names)
        }
        if self.settings.layers is None:
            return list(by_name.values())
        group: set[int] = set()
        for word in self.settings.layers:
            if word.isdecimal() and int(word) < len(names):
                group.add(int(word))
            elif word in by_name:
                group.update(by_name[word])
            else:
                known = [*by_name, *map(str, range(len(names)))]
                raise UserError(
                    f"--layers {word!r} is no layer of this model: {nearest(word, known)}"
                )
        return [sorted(group)]

    @property
    def windows(self) -> tuple[int, ...]:
        default = (max(self.length // 16, 1), max(self.length // 4, 1))
        return self.settings.windows or default

"""`hybridlm probe`: looks inside a run's checkpoints and writes probes.jsonl and a table."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from hybridlm import probes
from hybridlm.data import Tokenizer
from hybridlm.data.pipeline import open_pipeline
from hybridlm.errors import UserError
from hybridlm.evals.needle import NeedleInAHaystack
from hybridlm.evals.sample import token_spans
from hybridlm.evals.suite import heldout_documents
from hybridlm.models.params import Params
from hybridlm.probes import Head, Prompt, Prompts, Table
from hybridlm.runs import OpenedModel, checkpoint, metrics, open_model
from hybridlm.settings.reader import nearest

FILE = "probes.jsonl"
SHOWN = 40  # entries of a table that are printed; the file has all
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


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is probed.

    Attributes:
      probes: of `NAMES`.
      length: tokens of a prompt with its answer, and of a text; None is the length of training.
      samples: prompts (at depths from 0 to 100% in turn), and texts of gradient_influence.
      top_k, by: how many retrieval heads of the newest checkpoint, by which score.
      draws: random sets of as many heads.
      layers: of receptive_field, mixer names or layer numbers; None takes each mixer name in turn.
      windows: of receptive_field; None is a sixteenth and a quarter of `length`.
      truncate: see `probes.receptive_field`.
      classified, classes: prompts of layer_probing, and which eight values tell them apart.
    """

    probes: tuple[str, ...]
    length: int | None = None
    samples: int = 20
    seed: int = 0
    batch: int = 8
    top_k: int = probes.TOP_K
    by: Literal["mass", "copy"] = "mass"
    draws: int = 5
    layers: tuple[str, ...] | None = None
    windows: tuple[int, ...] | None = None
    truncate: bool = False
    classified: int = 200
    classes: Literal["hard", "easy"] = "hard"

    def check(self) -> None:
        """Raises UserError for settings that mean nothing."""
        for name in self.probes:
            if name not in NAMES:
                raise UserError(f"--probes {name!r} is unknown; there are: {', '.join(NAMES)}")
        if len(set(self.probes)) < len(self.probes):
            raise UserError("--probes names one twice")
        least = dict(length=2, samples=1, seed=0, batch=1, top_k=1, draws=0, classified=40)
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"--{name} must be at least {bound}, not {value}")
        if self.windows is not None and min(self.windows) < 1:
            raise UserError(f"--windows must be at least 1 token, not {min(self.windows)}")
        for name, choices in (("by", ("mass", "copy")), ("classes", tuple(CLASSES))):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"--{name} must be {' or '.join(choices)}, not {getattr(self, name)!r}"
                )


def probe_run(
    workdir: pathlib.Path,
    settings: Settings,
    out: pathlib.Path,
    step: int | Literal["all"] | None = None,
    report: Callable[[str], None] = lambda line: print(line, flush=True),
) -> str:
    """Probes a run's newest, given or all checkpoints; returns the tables that were also written.

    Files in `out`: `probes.jsonl`, to which the entries are appended (a line each, with `kind`,
    `step` and `length`), and `probes.txt`.

    Raises:
      UserError: for settings that mean nothing, a run without such a checkpoint, a length that the
        prompts do not fit, a folder that cannot be written.
    """
    settings.check()
    newest = open_model(workdir)
    steps = checkpoint.steps(workdir)
    chosen = steps if step == "all" else [newest.step if step is None else step]
    if missing := [s for s in chosen if s not in steps]:
        listed = ", ".join(map(str, steps))
        raise UserError(f"{workdir} holds no checkpoint of step {missing[0]}: it has {listed}")
    subject = _Subject(newest, workdir, settings)
    subject.check()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
    writer, parts = metrics.JsonlWriter(out / FILE), []
    try:
        for at in chosen:
            params = newest.params
            if at != newest.step:
                params = checkpoint.load_numpy(workdir, at)[1]["params"]
            for name in settings.probes:
                for table in NAMES[name](subject, at, params):
                    for record in table.records(at):
                        writer.write({**record, "length": subject.length})
                    parts.append(f"step {at}: {_shown(table)}")
                report(f"{name} at step {at:,} is done")
    finally:
        writer.close()
    text = "\n\n".join(parts)
    (out / "probes.txt").write_text(text + "\n", encoding="utf-8")
    return text


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


class _Subject:
    """A run and the data its probes read, each made when first asked for."""

    def __init__(self, run: OpenedModel, workdir: pathlib.Path, settings: Settings):
        self.run, self.model, self.settings = run, run.model, settings
        self.workdir = workdir
        self.length = settings.length or run.length
        self.options: dict[str, Any] = dict(batch=settings.batch, dtype=run.dtype)

    def check(self) -> None:
        """Makes the data before anything is run, so that what does not fit is known at once."""
        wanted = set(self.settings.probes)
        if wanted - {"qk_distance", "gradient_influence", "layer_probing"}:
            _ = self.prompts
        if "layer_probing" in wanted:
            _ = self.classified
        if "gradient_influence" in wanted:
            _ = self.texts
        _ = self.restricted

    @functools.cached_property
    def prompts(self) -> Prompts:
        settings = self.settings
        return needle_prompts(self.run.tokenizer, self.length, settings.samples, settings.seed)[0]

    @functools.cached_property
    def classified(self) -> tuple[Prompts, np.ndarray]:
        settings = self.settings
        return needle_prompts(
            self.run.tokenizer,
            self.length,
            settings.classified,
            settings.seed,
            CLASSES[settings.classes],
        )

    @functools.cached_property
    def texts(self) -> Prompts:
        """Held-out documents of `length` tokens; there is nothing to answer."""
        data = dataclasses.replace(self.run.training_data(), seq_len=self.length)
        pipeline = open_pipeline(data, seed=self.run.seed, workdir=self.workdir)
        documents = heldout_documents(pipeline, self.length, self.settings.samples)
        if not documents:
            raise UserError(
                f"gradient_influence: no held-out document has {self.length:,} tokens: take less"
            )
        return Prompts.of([Prompt(d, [], (len(d) - 1, len(d))) for d in documents])

    @functools.cached_property
    def heads(self) -> tuple[Head, ...]:
        """The retrieval heads of the newest checkpoint."""
        table = probes.retrieval_heads(self.model, self.run.params, self.prompts, **self.options)
        return probes.top_heads(table, self.settings.top_k, self.settings.by)

    @functools.cached_property
    def restricted(self) -> list[list[int]]:
        """Groups of layers to restrict."""
        names = probes.mixer_names(self.model)
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


Tables = Iterator[Table[Any]]


def _retrieval_heads(subject: _Subject, step: int, params: Params) -> Tables:
    yield probes.retrieval_heads(subject.model, params, subject.prompts, **subject.options)


def _entropy(subject: _Subject, step: int, params: Params) -> Tables:
    yield probes.attention_entropy(
        subject.model, params, subject.prompts, subject.heads, **subject.options
    )


def _qk_distance(subject: _Subject, step: int, params: Params) -> Tables:
    yield probes.qk_distance(subject.model, [(step, params)], subject.run.params)


def _gradient_influence(subject: _Subject, step: int, params: Params) -> Tables:
    yield probes.gradient_influence(subject.model, params, subject.texts, **subject.options)


def _receptive_field(subject: _Subject, step: int, params: Params) -> Tables:
    for layers in subject.restricted:
        yield probes.receptive_field(
            subject.model,
            params,
            subject.prompts,
            layers,
            subject.windows,
            truncate=subject.settings.truncate,
            **subject.options,
        )


def _layer_probing(subject: _Subject, step: int, params: Params) -> Tables:
    prompts, labels = subject.classified
    seed = subject.settings.seed
    yield probes.layer_probing(subject.model, params, prompts, labels, seed=seed, **subject.options)


def _head_masking(subject: _Subject, step: int, params: Params) -> Tables:
    settings = subject.settings
    yield probes.head_masking(
        subject.model,
        params,
        subject.prompts,
        subject.heads,
        draws=settings.draws,
        seed=settings.seed,
        **subject.options,
    )


def _slot_share(subject: _Subject, step: int, params: Params) -> Tables:
    yield probes.slot_share(subject.model, params, subject.prompts, **subject.options)


#: What `--probes` may name.
NAMES: dict[str, Callable[[_Subject, int, Params], Tables]] = {
    "retrieval_heads": _retrieval_heads,
    "entropy": _entropy,
    "qk_distance": _qk_distance,
    "gradient_influence": _gradient_influence,
    "receptive_field": _receptive_field,
    "layer_probing": _layer_probing,
    "head_masking": _head_masking,
    "slot_share": _slot_share,
}


def _shown(table: Table[Any]) -> str:
    lines = table.text().splitlines()
    left_out = len(table) - SHOWN
    if left_out > 0:
        lines = [*lines[:-left_out], f"... and {left_out} more in {FILE}"]
    return "\n".join(lines)

"""A run's evaluations: which there are, and their results as records."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hybridlm.data.pipeline import Pipeline, open_pipeline
from hybridlm.errors import UserError
from hybridlm.evals import longppl, mqar, recall, ruler
from hybridlm.evals.extrapolation import Extrapolation
from hybridlm.evals.needle import NeedleInAHaystack
from hybridlm.evals.perplexity import evaluate, make_eval_step
from hybridlm.evals.scoring import METRICS, complete, likeliest
from hybridlm.models.params import Model, Params
from hybridlm.runs import OpenedModel, open_model

LOSSES = ("perplexity", "longppl")
NAMES = (*LOSSES, "needle", *ruler.NAMES, "mqar", *recall.NAMES)
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is evaluated.

    Attributes:
      tasks: of `NAMES`. lengths: tokens. samples: of each task and length; of "needle", at each
        depth; of "perplexity" and "longppl", sequences. batch: sequences at once.
      trunc_len, sliding_window: of LongPPL. evaluator: workdir of the run that finds LongPPL's key
        tokens, None for the model itself.
      squad, hotpotqa: JSON files for qa_1 and qa_2; None for our own questions.
      recall: folder of the recall tasks' files, NAME.jsonl.
      pairs: of "mqar"; None is a 16th of the length.
      logit_scale, rope_theta, yarn: see `Extrapolation`.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    samples: int = 20
    seed: int = 0
    batch: int = 8
    trunc_len: int = longppl.TRUNC_LEN
    sliding_window: int = longppl.SLIDING_WINDOW
    evaluator: pathlib.Path | None = None
    squad: pathlib.Path | None = None
    hotpotqa: pathlib.Path | None = None
    recall: pathlib.Path | None = None
    pairs: int | None = None
    logit_scale: float | None = None
    rope_theta: float | None = None
    yarn: float | None = None

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(self.logit_scale, self.rope_theta, self.yarn)

    def check(self) -> None:
        """Raises UserError for settings that mean nothing."""
        for name in self.tasks:
            if name not in NAMES:
                raise UserError(f"--tasks {name!r} is unknown; there are: {', '.join(NAMES)}")
        for what, values in (("--tasks", self.tasks), ("--lengths", self.lengths)):
            if not values or len(set(values)) < len(values):
                raise UserError(f"{what} needs at least one value, and each only once")
        for what in ("samples", "batch", "trunc_len", "sliding_window"):
            if getattr(self, what) < 1:
                raise UserError(f"--{what} must be at least 1, not {getattr(self, what)}")
        if min(self.lengths) < 2:
            raise UserError(f"--lengths must be at least 2 tokens, not {min(self.lengths)}")
        if self.seed < 0:
            raise UserError(f"--seed must be at least 0, not {self.seed}")
        named = [name for name in self.tasks if name in recall.NAMES]
        if named and self.recall is None:
            raise UserError(f"{named[0]} needs --recall, the folder with {named[0]}.jsonl")
        self.extrapolation.check()


def run_suite(
    run: OpenedModel,
    workdir: pathlib.Path,
    settings: Settings,
    report: Callable[[str], None] = lambda line: None,
) -> list[Record]:
    """Evaluates; one record for each task and length, in the order asked for.

    Every sample is made before the first is run, so that a length too short is known at once.

    Returns:
      Records with `task` and `length`, and
      "perplexity": `loss` (nats), `bits_per_byte`, `targets`, `by_position`;
      "longppl": `longppl`, `ppl`, `key_tokens`, `tokens`, `documents`;
      "mqar": `accuracy` (of queries), `samples`, `pairs`;
      other tasks: `accuracy`, `samples`, `by_depth` ([{"depth", "accuracy", "samples"}], where a
      sample has one needle) and `answers` (text, references and score of each sample).

    Raises:
      UserError: where a task does not fit a length, or data is missing.
    """
    settings.check()
    run = dataclasses.replace(run, model=_extrapolated(run, settings))
    tasks = {**ruler.tasks(settings.squad, settings.hotpotqa), "needle": NeedleInAHaystack()}
    if settings.recall is not None:
        tasks |= recall.tasks(settings.recall)
    drawn = {
        (name, length): [
            tasks[name].sample(run.tokenizer, length, settings.seed, index)
            for index in range(
                settings.samples * (len(tasks[name].depths) if name == "needle" else 1)
            )
        ]
        for name in settings.tasks
        if name not in (*LOSSES, "mqar")
        for length in settings.lengths
    }
    evaluator = None
    if "longppl" in settings.tasks:
        evaluator = _evaluator(run, settings)
        _check_documents(settings)
    records = []
    for name in settings.tasks:
        for length in settings.lengths:
            if name == "perplexity":
                record = _perplexity(run, workdir, length, settings)
            elif name == "longppl":
                record = _longppl(run, workdir, length, settings, evaluator)
            elif name == "mqar":
                record = _mqar(run, length, settings)
            else:
                record = _accuracy(run, drawn[name, length], tasks[name], settings.batch)
            records.append({"task": name, "length": length, **record})
            report(headline(records[-1]))
    return records


def headline(record: Record) -> str:
    """A record's figure in a line."""
    head = f"{record['task']} at {record['length']:,} tokens: "
    if record["task"] == "perplexity":
        return head + f"{record['loss']:.4f} nats, {record['bits_per_byte']:.4f} bits/byte"
    if record["task"] == "longppl":
        shown = "no key token" if record["longppl"] is None else f"{record['longppl']:.4g}"
        return head + f"{shown} ({record['key_tokens']:,} of {record['tokens']:,} tokens)"
    return head + f"{100 * record['accuracy']:.1f}% of {record['samples']} samples"


def _extrapolated(run: OpenedModel, settings: Settings) -> Model:
    """The run's model, or the one that reads further."""
    changed = settings.extrapolation.apply(run.config, run.length)
    return run.model if changed is run.config else Model.of(changed)


def _mqar(run: OpenedModel, length: int, settings: Settings) -> Record:
    """Multi-query associative recall over the ids of the model's vocabulary."""
    pairs = settings.pairs or max(length // 16, 1)
    dtype = run.dtype
    shares = []
    for index in range(-(-settings.samples // settings.batch)):
        made = mqar.mqar(
            length,
            pairs,
            settings.batch,
            seed=settings.seed,
            index=index,
            vocab_size=run.model.config.vocab_size,
        )
        best_BT = likeliest(
            run.model, run.params, made.tokens, made.segment_ids, made.positions, dtype=dtype
        )
        right = (best_BT == made.targets) * made.loss_weights
        shares += (right.sum(axis=1) / made.loss_weights.sum(axis=1)).tolist()
    shares = shares[: settings.samples]
    return {"accuracy": float(np.mean(shares)), "samples": len(shares), "pairs": pairs}


def _accuracy(run: OpenedModel, samples: Sequence[Any], task: Any, batch: int) -> Record:
    dtype = run.dtype
    texts = complete(run.model, run.params, run.tokenizer, samples, batch=batch, dtype=dtype)
    if until := getattr(task, "until", None):
        texts = [text.split(until)[0] for text in texts]
    scores = [METRICS[task.metric](text, s.references) for text, s in zip(texts, samples)]
    by_depth: dict[float, list[float]] = {}
    if all(len(s.depths) == 1 for s in samples):
        for s, score in zip(samples, scores):
            by_depth.setdefault(float(s.depths[0]), []).append(score)
    return {
        "accuracy": float(np.mean(scores)),
        "samples": len(samples),
        "by_depth": [
            {
                "depth": depth,
                "accuracy": float(np.mean(by_depth[depth])),
                "samples": len(by_depth[depth]),
            }
            for depth in sorted(by_depth)
        ],
        "answers": [
            {
                "index": s.index,
                "depths": list(s.depths),
                "references": list(s.references),
                "answer": text,
                "score": score,
            }
            for s, text, score in zip(samples, texts, scores)
        ],
    }


def _perplexity(run: OpenedModel, workdir: pathlib.Path, length: int, settings: Settings) -> Record:
    pipeline = _pipeline(run, workdir, length)
    dtype = run.dtype
    step = jax.jit(make_eval_step(run.model, run.tokenizer.token_bytes(), dtype))
    return evaluate(step, run.params, pipeline.heldout_batches(settings.batch, settings.samples))


def _longppl(
    run: OpenedModel,
    workdir: pathlib.Path,
    length: int,
    settings: Settings,
    evaluator: tuple[Model, Params] | None,
) -> Record:
    pipeline = _pipeline(run, workdir, length)
    documents = heldout_documents(pipeline, length, settings.samples)
    if not documents:
        raise UserError(f"longppl: no held-out document has {length:,} tokens: take less")
    result = longppl.model_longppl(
        run.model,
        run.params,
        documents,
        evaluator,
        trunc_len=settings.trunc_len,
        sliding_window=settings.sliding_window,
        dtype=run.dtype,
    )
    figures = {k: None if math.isnan(v) else v for k, v in result._asdict().items()}
    return {**figures, "documents": len(documents)}


def heldout_documents(pipeline: Pipeline, length: int, count: int) -> list[np.ndarray]:
    """The first `length` tokens, from BOS on, of the first held-out documents that have as many."""
    found: list[np.ndarray] = []
    for split in pipeline.heldout_splits.values():
        offsets = split.document_offsets()
        for first in offsets[:-1][np.diff(offsets) >= length].tolist():
            if len(found) < count:
                found.append(split.read(first, first + length)[0])
    return found


def _pipeline(run: OpenedModel, workdir: pathlib.Path, length: int) -> Pipeline:
    data = dataclasses.replace(run.training_data(), seq_len=length)
    return open_pipeline(data, seed=run.seed, workdir=workdir)


def _evaluator(run: OpenedModel, settings: Settings) -> tuple[Model, Params] | None:
    if settings.evaluator is None:
        return None
    other = open_model(settings.evaluator)
    if other.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"--evaluator {settings.evaluator} has another tokenizer than the run: LongPPL compares"
            " the same tokens"
        )
    return other.model, other.params


def _check_documents(settings: Settings) -> None:
    least = settings.trunc_len + settings.sliding_window + 1
    if min(settings.lengths) < least:
        raise UserError(
            f"longppl does not fit {min(settings.lengths)} tokens: with --trunc_len"
            f" {settings.trunc_len} and --sliding_window {settings.sliding_window} it needs {least}"
        )

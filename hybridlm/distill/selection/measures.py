"""What selectors score hybrids with: loss and KL on held-out text, recall and retrieval tasks.

Every figure is measured on several disjoint evaluation sets. All hybrids are one model with other gates
(`branches`), so a metric compiles its programs once.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.data.pipeline import Pipeline
from hybridlm.distill.selection.branches import BranchModel
from hybridlm.distill.selection.budget import Kept
from hybridlm.distill.selection.evaluations import Metric, Values
from hybridlm.distill.selection.retrieval import answer_nll, retrieval_batch, with_rows
from hybridlm.distill.selection.settings import SearchSettings
from hybridlm.errors import UserError
from hybridlm.evals.heldout import open_heldout
from hybridlm.evals.registry import TASKS
from hybridlm.evals.settings import EvalSettings
from hybridlm.models.lm import HybridLM
from hybridlm.models.loss import cut_in_slices
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.runs.opened import OpenedModel
from hybridlm.settings.names import nearest

HELDOUT = ("kl", "loss")
ANSWERS = {"needle_nll": "needle", "mqar_nll": "mqar"}
_TASKS = tuple(name for name, task in TASKS.items() if task.figure == "accuracy")
METRICS = {
    **{name: Metric(name, higher=False) for name in (*HELDOUT, *ANSWERS)},
    **{name: Metric(name) for name in _TASKS},
}
MEANINGS = {
    "kl": "KL(teacher, model) in nats per token of held-out text",
    "loss": "nats per token of held-out text",
    "needle_nll": "nats per token of a needle's value, which is given (teacher forcing)",
    "mqar_nll": "nats per value of multi-query associative recall",
    **{name: TASKS[name].help + ", accuracy" for name in _TASKS},
}


def check_metrics(names: Iterable[str]) -> None:
    """Raises UserError for a name that is no metric."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"metric {name!r} is unknown: {nearest(name, METRICS)}")


class Measures:
    """Evaluates hybrids: the `measure` of `Evaluations`.

    Attributes:
      length: tokens of a sequence.
    """

    def __init__(
        self,
        branch: BranchModel,
        source: OpenedModel,
        settings: SearchSettings,
        metrics: Iterable[str],
    ):
        """Prepares the data of the metrics, so that what does not fit fails before any evaluation.

        Args:
          source: the run that has the held-out text; the same tokenizer.

        Raises:
          UserError: if a metric is unknown or does not fit the length, or text is missing.
        """
        metrics = tuple(dict.fromkeys(metrics))
        check_metrics(metrics)
        self._branch, self._settings = branch, settings
        self._dtype = source.dtype
        self.length = settings.length or source.length
        self._prepared: dict[str, Any] = {}
        self._text: list[dict[str, np.ndarray]] = []
        self._taught: list[np.ndarray] = []
        self._sums: dict[Kept, tuple[np.ndarray, ...]] = {}  # kl, nll and tokens by sequence
        if set(metrics) & set(HELDOUT):
            self._pipeline = open_heldout(source, self.length, "the selection of layers")
            self._text = _heldout(self._pipeline, settings, self.length)
        for name in metrics:
            if name in ANSWERS:
                self._prepared[name] = self._answers(ANSWERS[name])
            elif name in TASKS:
                sets = (self._task_settings(name, s) for s in range(settings.sets))
                opened = branch.teacher
                self._prepared[name] = [(s, TASKS[name].prepare(opened, s)) for s in sets]

    def identity(self) -> dict[str, Any]:
        """What the values depend on beside the models, ready for JSON."""
        settings = self._settings
        found = {n: getattr(settings, n) for n in ("samples", "sets", "sample_seed", "pairs")}
        found |= {"length": self.length, "dtype": jnp.dtype(self._dtype).name}
        if self._prepared:
            found["batch"] = settings.batch  # answers and tasks are drawn batch by batch
        if self._text:
            sources = self._pipeline.counts()["sources"]
            found["text"] = {name: facts["sha256"] for name, facts in sources.items()}
        return found

    def __call__(self, kept: Kept, metric: str) -> Values:
        """The metric of a hybrid on each evaluation set."""
        if metric in HELDOUT:
            return self._heldout_values(kept, metric)
        if metric in ANSWERS:
            return self._answer_values(kept, metric)
        opened = dataclasses.replace(self._branch.opened(kept), settings=self._branch_settings())
        task = TASKS[metric]
        return tuple(
            float(task.run(opened, self.length, settings, prepared)[task.figure])
            for settings, prepared in self._prepared[metric]
        )

    def _branch_settings(self) -> dict[str, Any]:
        own = self._branch.teacher.settings
        return own | {"train": {**own.get("train", {}), "dtype": jnp.dtype(self._dtype).name}}

    def _heldout_values(self, kept: Kept, metric: str) -> Values:
        if kept not in self._sums:
            self._sums[kept] = self._text_sums(kept)
        kl, nll, tokens = self._sums[kept]
        return self._by_set(kl if metric == "kl" else nll, tokens)

    def _text_sums(self, kept: Kept) -> tuple[np.ndarray, ...]:
        """(kl_N, nll_N, tokens_N) of all sequences of text: one pass gives both metrics."""
        model, params = self._branch.model, self._branch.with_kept(kept)
        if not self._taught:
            hidden, teacher = (
                _hidden(model, self._dtype),
                self._branch.with_kept(self._branch.layers),
            )
            self._taught = [np.asarray(hidden(teacher, batch)) for batch in self._text]
        run = _text_sums(model, self._dtype)
        rows = [jax.device_get(run(params, b, t)) for b, t in zip(self._text, self._taught)]
        return tuple(np.concatenate(x).astype(np.float64) for x in zip(*rows))

    def _answer_values(self, kept: Kept, metric: str) -> Values:
        run, params = _answer_sums(self._branch.model, self._dtype), self._branch.with_kept(kept)
        rows = [jax.device_get(run(params, batch)) for batch in self._prepared[metric]]
        nll, tokens = (np.concatenate(x).astype(np.float64) for x in zip(*rows))
        return self._by_set(nll, tokens)

    def _by_set(self, sums: np.ndarray, tokens: np.ndarray) -> Values:
        """Sums over tokens of each sequence, as means of each evaluation set."""
        size = self._settings.samples
        cuts = (slice(s * size, (s + 1) * size) for s in range(self._settings.sets))
        return tuple(float(sums[cut].sum() / tokens[cut].sum()) for cut in cuts)

    def _answers(self, task: Any) -> list[dict[str, np.ndarray]]:
        settings, made = self._settings, []
        for index in range(-(-settings.samples * settings.sets // settings.batch)):
            made.append(
                retrieval_batch(
                    task,
                    self._branch.teacher.tokenizer,
                    self._branch.model.config.vocab_size,
                    self.length,
                    settings.batch,
                    seed=_seed(settings.sample_seed, index),
                    pairs=settings.pairs,
                )
            )
        longest = max(batch["rows"].shape[1] for batch in made)
        return [with_rows(batch, longest) for batch in made]

    def _task_settings(self, name: str, index: int) -> EvalSettings:
        settings = self._settings
        return EvalSettings(
            tasks=(name,),
            lengths=(self.length,),
            samples=settings.samples,
            seed=_seed(settings.sample_seed, index),
            batch=settings.batch,
            pairs=settings.pairs,
        )


def _seed(seed: int, index: int) -> int:
    """Seeds of evaluation sets, apart from those of gate training, which are even."""
    return 2 * (seed * 10_007 + index) + 1


def _heldout(
    pipeline: Pipeline, settings: SearchSettings, length: int
) -> list[dict[str, np.ndarray]]:
    wanted = settings.samples * settings.sets
    found = len(pipeline.heldout_sequences(wanted))
    if found < wanted:
        raise UserError(
            f"{settings.sets} sets of {settings.samples} sequences of {length:,} tokens need {wanted},"
            f" and the held-out text has {found}: take fewer --samples or --sets, or a smaller --length"
        )
    return list(pipeline.heldout_batches(settings.batch, wanted))


@per_model
def _hidden(model: Model, dtype: jnp.dtype) -> Callable[..., jax.Array]:
    @jax.jit
    def run(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return _run(model.bind(params), batch, dtype)

    return run


def _run(module: HybridLM, batch: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
    context = SequenceContext(batch["segment_ids"], batch["positions"], batch.get("window"))
    return module.hidden(batch["tokens"], context, dtype=dtype)


@per_model
def _text_sums(model: Model, dtype: jnp.dtype) -> Callable[..., Any]:
    @jax.jit
    def run(
        params: Params, batch: dict[str, jax.Array], taught_BTD: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(kl_B, nll_B, tokens_B): sums over each sequence's targets; logits slice by slice."""
        module = model.bind(params)
        hidden_BTD = _run(module, batch, dtype)

        def one_slice(xs: Any) -> tuple[jax.Array, jax.Array]:
            taught, hidden, targets, weights = xs
            log_p, log_q = (jax.nn.log_softmax(module.logits(h), axis=-1) for h in (taught, hidden))
            kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
            nll = -jnp.take_along_axis(log_q, targets[..., None], axis=-1)[..., 0]
            return jnp.sum(kl * weights, axis=1), jnp.sum(nll * weights, axis=1)

        weights_BT = batch["loss_weights"]
        arrays = (taught_BTD, hidden_BTD, batch["targets"], weights_BT)
        slices = cut_in_slices(module.head_kernel(), *arrays)
        kl_NB, nll_NB = jax.lax.map(one_slice, slices)
        return jnp.sum(kl_NB, axis=0), jnp.sum(nll_NB, axis=0), jnp.sum(weights_BT, axis=1)

    return run


@per_model
def _answer_sums(model: Model, dtype: jnp.dtype) -> Callable[..., Any]:
    return jax.jit(lambda params, batch: answer_nll(model, params, batch, dtype))

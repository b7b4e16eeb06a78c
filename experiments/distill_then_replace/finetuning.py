"""Stage 3: the chosen hybrid learns the teacher's probabilities, then longer sequences."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments.distill_then_replace.arms import RECIPE, call
from experiments.distill_then_replace.usage import measured
from hybridlm.distill.kl import Divergence, summed_divergence
from hybridlm.distill.selection.retrieval import answer_nll, retrieval_batch
from hybridlm.evals.heldout import open_heldout
from hybridlm.models.mixers import SequenceContext
from hybridlm.runs import metrics, open_model
from hybridlm.runs.json_files import read_json, write_json
from hybridlm.runs.opened import OpenedModel

DONE = "finetune.json"
LENGTH, SEQUENCES, NEEDLES = 256, 8, 8  # of held-out text and of prompts, before and after
STAGES = {
    "kl": dict(objective="kl", steps=12, length=256, batch=2),
    "long": dict(objective="none", steps=3, length=1024, batch=1),
}


def run(name: str, teacher: pathlib.Path, hybrid: pathlib.Path, workdir: pathlib.Path) -> None:
    """Trains what is left of a stage, which goes on from the one before it; evaluates the model after it,
    and after the first stage also the model before.

    Args:
      name: one of STAGES. teacher, hybrid: model folders.
    """
    path, folder = workdir / DONE, workdir / name
    found = read_json(path) if path.exists() else {"training": {}, "heldout": {}}
    if name in found["training"]:
        return
    earlier = list(STAGES)[: list(STAGES).index(name)]
    student = workdir / earlier[-1] if earlier else hybrid
    with measured(workdir, f"finetune: {name}"):
        words = [f"{key}={value}" for key, value in STAGES[name].items()]
        argument = ",".join([f"student={student}", f"teacher={teacher}", *words])
        call("train", "--config", f"{RECIPE}:{argument}", "--workdir", str(folder))
        records = [r for r in metrics.read(folder / metrics.FILE) if r["kind"] == "train"]
        found["training"][name] = {
            key: [r.get(key) for r in records]
            for key in ("step", "loss", "kl", "tokens_per_second")
        }
        trained = open_model(folder)
        evaluate = _Evaluation(open_model(teacher), trained)
        if not found["heldout"]:
            found["heldout"]["before"] = evaluate(open_model(hybrid))
        found["heldout"][name] = evaluate(trained)
        write_json(path, found)


class _Evaluation:
    """One compiled program for models of one architecture."""

    def __init__(self, teacher: OpenedModel, student: OpenedModel):
        """Prepares the held-out text of the student, which is a run, and a batch of needles."""
        self._teacher, self._model = teacher, student.model
        pipeline = open_heldout(student, LENGTH, "the evaluation of stage 3")
        self._batches = list(pipeline.heldout_batches(1, SEQUENCES))
        size, seed = student.config.vocab_size, 1_000_001  # gates are trained on even seeds
        self._needles = retrieval_batch(
            "needle", student.tokenizer, size, LENGTH, NEEDLES, seed=seed
        )
        self._sums = jax.jit(self._divergence)
        self._answers = jax.jit(
            lambda params, batch: answer_nll(self._model, params, batch, jnp.float32)
        )

    def __call__(self, student: OpenedModel) -> dict[str, list[float]]:
        """`kl` to the teacher and `loss` of each sequence, `needle_nll` of each needle, nats a token."""
        params = self._model.from_names(student.model.by_name(student.params))
        pairs = [self._sums(self._teacher.params, params, batch) for batch in self._batches]
        kl, loss = zip(*jax.device_get(pairs))
        nll_B, tokens_B = jax.device_get(self._answers(params, self._needles))
        found = {"kl": kl, "loss": loss, "needle_nll": nll_B / tokens_B}
        return {name: [float(x) for x in values] for name, values in found.items()}

    def _divergence(self, taught: Any, params: Any, batch: Any) -> Any:
        objective = Divergence(self._teacher.model, 1.0, 0.0).settings(self._model.config)
        context = SequenceContext(batch["segment_ids"], batch["positions"])
        modules = self._teacher.model.bind(taught), self._model.bind(params)
        wanted, hidden = (m.hidden(batch["tokens"], context, dtype=jnp.float32) for m in modules)
        heads = [m.head_kernel() for m in modules]
        weights = batch["loss_weights"]
        found = summed_divergence(
            hidden, heads[1], wanted, heads[0], batch["targets"], weights, objective
        )
        return found.kl / weights.sum(), found.nll / weights.sum()

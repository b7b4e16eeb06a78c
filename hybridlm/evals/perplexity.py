"""Held-out loss, over all targets and by position in the document."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.data.pipeline import Pipeline
from hybridlm.evals.heldout import open_heldout
from hybridlm.evals.settings import EvalSettings
from hybridlm.evals.task import Record
from hybridlm.models.loss import loss_settings, token_nll
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from hybridlm.runs import OpenedModel


def make_eval_step(
    model: Model, token_bytes_V: np.ndarray, dtype: jnp.dtype
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """Makes a step that sums over a batch of (batch, time) arrays, by position in the document.

    The step returns float32 arrays: `nll_T` in nats, `targets_T` the number of targets, and
    `bytes_T` the UTF-8 bytes of the targets.
    """

    def eval_step(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        module = model.bind(params)
        hidden_BTD = module.hidden(
            batch["tokens"],
            SequenceContext(batch["segment_ids"], batch["positions"], batch.get("window")),
            dtype=dtype,
        )
        nll_BT = token_nll(
            hidden_BTD, module.head_kernel(), batch["targets"], loss_settings(model.config)
        )
        weights_BT = batch["loss_weights"]
        bytes_BT = jnp.asarray(token_bytes_V)[batch["targets"]] * weights_BT
        time = nll_BT.shape[1]

        def by_position(x_BT: jax.Array) -> jax.Array:
            return jnp.zeros(time).at[batch["positions"]].add(x_BT)

        return {
            "nll_T": by_position(nll_BT * weights_BT),
            "targets_T": by_position(weights_BT),
            "bytes_T": by_position(bytes_BT),
        }

    return eval_step


def evaluate(
    eval_step: Callable[[Any, Any], dict[str, jax.Array]], params: Any, batches: Iterable[Any]
) -> dict[str, Any]:
    """Averages the sums of `make_eval_step` over batches.

    Returns `loss` (nats per target), `bits_per_byte`, `targets`, and `by_position`: the same
    figures for the positions 0, 1, 2-3, 4-7, ..., with the `first` and `last` position of each.
    """
    sums: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, value in jax.device_get(eval_step(params, batch)).items():
            sums[name] = sums.get(name, 0) + np.asarray(value, np.float64)
    nll_T, targets_T, bytes_T = sums["nll_T"], sums["targets_T"], sums["bytes_T"]
    edges = [0, *(2**i for i in range(math.ceil(math.log2(len(nll_T))) + 1))]
    edges = sorted({min(edge, len(nll_T)) for edge in edges})
    by_position = []
    for first, end in zip(edges, edges[1:]):
        figures = _averages(nll_T[first:end], targets_T[first:end], bytes_T[first:end])
        if figures["targets"]:
            by_position.append({"first": first, "last": end - 1, **figures})
    return {**_averages(nll_T, targets_T, bytes_T), "by_position": by_position}


def _averages(nll: np.ndarray, targets: np.ndarray, size: np.ndarray) -> dict[str, float]:
    total = float(nll.sum())
    return {
        "loss": total / max(float(targets.sum()), 1.0),
        "bits_per_byte": total / max(float(size.sum()), 1.0) / math.log(2),
        "targets": int(targets.sum()),
    }


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The registered task (see `hybridlm.evals.task.Task`)."""

    name: str = "perplexity"
    help: str = "held-out loss, also by position"
    definition: str = (
        "nats per token and bits per byte over held-out sequences of the length, for all positions and"
        " for positions 0, 1, 2–3, 4–7, …; `hybridlm/evals/perplexity.py`"
    )
    needs: tuple[str, ...] = ()
    figure: str = "bits_per_byte"
    title: str = "bits per byte"

    def prepare(self, opened: OpenedModel, settings: EvalSettings) -> dict[int, Pipeline]:
        """Opens the run's data at each length."""
        return {length: open_heldout(opened, length, self.name) for length in settings.lengths}

    def run(
        self,
        opened: OpenedModel,
        length: int,
        settings: EvalSettings,
        prepared: dict[int, Pipeline],
    ) -> Record:
        """Returns `loss` (nats), `bits_per_byte`, `targets` and `by_position`."""
        step = make_eval_step(opened.model, opened.tokenizer.token_bytes(), opened.dtype)
        batches = prepared[length].heldout_batches(settings.batch, settings.samples)
        return evaluate(jax.jit(step), opened.params, batches)

    def headline(self, record: Record) -> str:
        return f"{record['loss']:.4f} nats, {record['bits_per_byte']:.4f} bits/byte"


PERPLEXITY = Perplexity()

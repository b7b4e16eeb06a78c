"""What a conversion keeps of a pretrained transformer: held-out loss, and the divergence from the teacher.

    python -m experiments.native_hybrid_attention.kept TEACHER CONVERTED FINETUNED --out runs/nha/kept.tsv

CONVERTED is a folder that `convert.py` wrote, and FINETUNED the run of `finetune.py`, whose held-out text is
read. All three models read the same sequences, each of them once.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.large_window_laziness import tables as tsv
from hybridlm.errors import UserError, exit_code
from hybridlm.evals.heldout import open_heldout
from hybridlm.models.loss import cut_in_slices
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.runs import OpenedModel, open_model

MODELS = ("teacher", "converted", "finetuned")
COLUMNS = ("model", "sequence", "tokens", "loss", "kl")
LENGTH, SEQUENCES = 512, 8
Batch = dict[str, np.ndarray]


def measure(
    models: Sequence[OpenedModel], length: int = LENGTH, sequences: int = SEQUENCES
) -> list[dict[str, Any]]:
    """The rows of kept.tsv: `loss` and KL(teacher || model), nats a token, of each held-out sequence.

    Args:
      models: those of MODELS; the last is a run.
      length: tokens of a sequence.

    Raises:
      UserError: where a tokenizer is not the teacher's, the held-out text is too short, or
        `sequences` is below 1.
      RunError: if the last model is no run.
    """
    if sequences < 1:
        raise UserError(f"--sequences is {sequences}: it must be at least 1")
    teacher, *_, run = models
    for model in models[1:]:
        if model.tokenizer.fingerprint != teacher.tokenizer.fingerprint:
            raise UserError(
                f"{model.path} has another tokenizer than the teacher {teacher.path}: losses and"
                " divergences need the same ids"
            )
    pipeline = open_heldout(run, length, "the comparison")
    found = len(pipeline.heldout_sequences(sequences))
    if found < sequences:
        raise UserError(
            f"--sequences is {sequences}, and the held-out text has {found} of {length:,} tokens"
        )
    batches: list[Batch] = list(pipeline.heldout_batches(1, sequences))
    read = jax.jit(lambda params, batch: _hidden(teacher.model, params, batch))
    taught_params = jax.device_put(teacher.params)
    taught = [read(taught_params, batch) for batch in batches]
    rows, programs = [], {}
    for name, model in zip(MODELS, models, strict=True):
        like = next(m.model for m in models if m.config == model.config)  # they share a program
        sums = programs.setdefault(id(like), _sums(like, teacher.model))
        params = jax.device_put(model.params)
        for number, (batch, hidden_BTD) in enumerate(zip(batches, taught, strict=True)):
            loss, kl, tokens = map(float, sums(params, taught_params, hidden_BTD, batch))
            means = [f"{round(x / tokens, 6) + 0.0:.6f}" for x in (loss, kl)]  # no -0
            values = (name, number, int(tokens), *means)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            print("\t".join(map(str, values)), flush=True)
    return rows


def _hidden(model: Model, params: Params, batch: Batch) -> jax.Array:
    context = SequenceContext(batch["segment_ids"], batch["positions"])
    return model.bind(params).hidden(batch["tokens"], context, dtype=jnp.float32)


def _sums(model: Model, teacher: Model) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """(params, the teacher's, its hidden states, batch) -> (nll, KL, tokens), summed over targets."""

    @jax.jit
    def sums(params: Params, taught_params: Params, taught_BTD: jax.Array, batch: Batch) -> Any:
        ours, theirs = model.bind(params), teacher.bind(taught_params)

        def one_slice(xs: Any) -> tuple[jax.Array, jax.Array]:
            hidden, taught, targets, weights = xs
            log_q = jax.nn.log_softmax(ours.logits(hidden), axis=-1)
            log_p = jax.nn.log_softmax(theirs.logits(taught), axis=-1)
            kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
            nll = -jnp.take_along_axis(log_q, targets[..., None], axis=-1)[..., 0]
            return jnp.sum(nll * weights), jnp.sum(kl * weights)

        weights_BT = batch["loss_weights"]
        arrays = (_hidden(model, params, batch), taught_BTD, batch["targets"], weights_BT)
        nll, kl = jax.lax.map(one_slice, cut_in_slices(ours.head_kernel(), *arrays))
        return jnp.sum(nll), jnp.sum(kl), jnp.sum(weights_BT)

    return sums


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="kept", description=__doc__.split("\n")[0])
    for name in MODELS:
        parser.add_argument(name, type=pathlib.Path, help="a run, model folder or checkpoint")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file of the rows")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a sequence")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="of held-out text")
    given = parser.parse_args(argv)
    models = [open_model(getattr(given, name)) for name in MODELS]
    tsv.write(given.out, COLUMNS, measure(models, given.length, given.sequences))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("kept", main))

"""Calibrated initialisation: what transfer leaves fresh, fitted on a few batches of text.

Copied projections alone start badly, because gates, decays and write strengths are drawn at random (arXiv
2606.16429, which fits them to the teacher's statistics). Here each layer's new mixer reads the teacher's
input to that layer, and its fresh parameters follow the gradient of its squared error over the teacher's
mean square, for some steps of Adam. Before and after, in closed form, the output projection of each head
is multiplied by a number: the ridge regression of the teacher's output on the heads' outputs. All layers
are fitted in one pass over the teacher; nothing else than the fresh parameters and these factors changes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from hybridlm.distill import blockwise, kinds
from hybridlm.distill.layers import stacked_like
from hybridlm.distill.transfer import Transferred
from hybridlm.errors import UserError
from hybridlm.models import stack
from hybridlm.models.layers import Identity
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.params import Model, Params
from hybridlm.models.trainable import Trainable
from hybridlm.progress import doing
from hybridlm.runs.opened import OpenedModel

RIDGE = 1e-3  # of the regression, times the mean square of a head's output


class Calibrated(NamedTuple):
    """A calibrated student, and the error of each replaced layer before and after.

    Attributes:
      before, after: squared error over the teacher's mean square, by layer, on the batches.
    """

    student: OpenedModel
    before: dict[int, float]
    after: dict[int, float]


def calibrate(
    teacher: OpenedModel,
    transferred: Transferred,
    batches: Sequence[np.ndarray],
    steps: int = 50,
    rate: float = 3e-3,
) -> Calibrated:
    """Fits the fresh parameters of a transferred student.

    Args:
      batches: int arrays (rows, time) of the teacher's ids, each row one document.
      steps: of Adam, in turn over the batches.
      rate: learning rate, which falls to 0 as a cosine.
    """
    with doing("measuring the student before calibration"):
        fit = _Fit(teacher, transferred)
        params = jax.tree.map(jnp.asarray, transferred.student.params)
        before = fit.errors(params, batches)
        params = fit.scaled(params, batches)
    with doing(f"calibrating the student in {steps} steps"):
        params = fit.trained(params, batches, steps, rate)
    with doing("measuring the calibrated student"):
        params = fit.scaled(params, batches)
        after = fit.errors(params, batches)
    student = dataclasses.replace(
        transferred.student, params=jax.tree.map(np.asarray, jax.device_get(params))
    )
    return Calibrated(student, before, after)


def text_batches(
    opened: OpenedModel, text: str, tokens: int, length: int, rows: int = 4
) -> list[np.ndarray]:
    """Batches (rows, length) of the first `tokens` tokens of a text.

    Raises:
      UserError: if the text has fewer tokens than one batch.
    """
    with doing("tokenizing the text of calibration"):
        ids = np.asarray(opened.tokenizer.encode(text), np.int32)[:tokens]
    count = len(ids) // (rows * length)
    if not count:
        raise UserError(
            f"the text has {len(ids)} tokens, and a batch of calibration takes {rows * length}: use"
            " a longer text, or a smaller length"
        )
    return list(ids[: count * rows * length].reshape(count, rows, length))


class _Fit:
    """The compiled functions of a calibration."""

    def __init__(self, teacher: OpenedModel, transferred: Transferred):
        self.layers = transferred.layers
        self.student: Model = transferred.student.model
        self.fresh = tuple(transferred.fresh)
        self.teacher = Model.of(stacked_like(teacher.config, self.student.config.layout))
        named = teacher.model.by_name(teacher.params)
        self.taught = jax.tree.map(jnp.asarray, self.teacher.from_names(named))
        # Without the gradients, whose computation the compiler leaves out.
        self._sums = jax.jit(lambda *given: self._sums_and_gradients(*given)[0])
        self._regressions = jax.jit(self._regress)

    def errors(self, params: Params, batches: Sequence[np.ndarray]) -> dict[int, float]:
        """Squared error over the teacher's mean square, by layer."""
        sums = [self._sums(params, self.taught, batch) for batch in batches]
        error_L, power_L = (sum(np.asarray(s[i], np.float64) for s in sums) for i in (0, 1))
        return {i: float(error_L[i] / power_L[i]) for i in self.layers}

    def trained(
        self, params: Params, batches: Sequence[np.ndarray], steps: int, rate: float
    ) -> Params:
        """The parameters after `steps` of Adam on the fresh ones."""
        if not self.fresh or not steps:
            return params
        names = set(self.student.by_name(self.student.abstract))
        # Parameters that are not fresh are frozen; exact names, as globs take brackets for sets.
        trainable = Trainable.of(self.student, "|".join(sorted(names - set(self.fresh))))
        adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
        part = trainable.take(params)
        state = adam.init(part)

        @jax.jit
        def step(part: Params, state: Any, params: Params, taught: Params, batch: jax.Array) -> Any:
            sums, grads = self._sums_and_gradients(trainable.put(params, part), taught, batch)
            grads = trainable.cut(blockwise.part_of(grads, trainable.arrays(params)))
            power = jnp.sum(sums.power)
            grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0) / power, grads)
            updates, state = adam.update(grads, state, part)
            return optax.apply_updates(part, updates), state

        for number in range(steps):
            batch = batches[number % len(batches)]
            part, state = step(part, state, params, self.taught, batch)
        return trainable.put(params, part)

    def scaled(self, params: Params, batches: Sequence[np.ndarray]) -> Params:
        """The parameters with each head's output projection times its regression coefficient."""
        found: dict[int, Any] = {}
        for batch in batches:
            for row in batch:  # one at a time: a head's output is as large as the layer's
                sums = self._regressions(params, self.taught, row[None])
                for layer, one in enumerate(stack.by_layer(sums, self.teacher.config.layout)):
                    if one is not None:
                        old = found.get(layer, (0.0, 0.0))
                        found[layer] = tuple(
                            a + np.asarray(b, np.float64) for a, b in zip(old, one, strict=True)
                        )
        for layer, (gram_HH, moment_H) in found.items():
            ridge = RIDGE * np.trace(gram_HH) / len(moment_H)
            if not np.isfinite(gram_HH).all() or ridge <= 0:
                continue
            factor_H = np.linalg.solve(gram_HH + ridge * np.eye(len(moment_H)), moment_H)
            own = self.student.layer(params, layer)
            kernel = own["mixer"]["out"]["kernel"]
            rows = np.repeat(factor_H, kernel.shape[0] // len(factor_H)).astype(np.float32)
            mixer = {
                **own["mixer"],
                "out": {**own["mixer"]["out"], "kernel": kernel * rows[:, None]},
            }
            params = self.student.with_layer(params, layer, {**own, "mixer": mixer})
        return params

    def _sums_and_gradients(self, params: Params, taught: Params, tokens_BT: jax.Array) -> Any:
        context = _whole_documents(tokens_BT)
        modules = self.teacher.bind(taught), self.student.bind(params)
        return blockwise.gradients(*modules, self.layers, tokens_BT, context, jnp.float32)

    def _regress(self, params: Params, taught: Params, tokens_BT: jax.Array) -> stack.ByGroup:
        """(Gram matrix of the heads' outputs, their products with the teacher's), by layer."""
        teacher, student = self.teacher.bind(taught), self.student.bind(params)
        graphdefs, states = blockwise.mixers_of(teacher, student, self.layers)
        context = _whole_documents(tokens_BT)
        mixers = [mixer for _, mixer in self.student.config.layer_mixers()]
        width = self.student.config.width

        def apply(block, index, x_BTD, context, carry, state):
            def mix(x_BTD):
                y_BTD = block.mixer(x_BTD, context)
                heads = None if state is None else _output_heads(mixers[index], width)
                if heads is None:
                    return y_BTD, None

                mixer = nnx.merge(graphdefs[index], state)
                out, mixer.out = mixer.out, Identity()
                u_BTC = mixer(x_BTD, context.apart())  # layers above read the teacher's keys
                u_NHV = u_BTC.reshape(-1, heads, out.kernel.shape[0] // heads)
                kernel_HVD = out.kernel[...].reshape(heads, -1, width)
                z_HN = jnp.einsum("nhv,hvd->hnd", u_NHV, kernel_HVD).reshape(heads, -1)
                constant = 0 if out.bias is None else out.bias[...]
                wanted_N = (y_BTD - constant).reshape(-1)
                return y_BTD, (z_HN @ z_HN.T, z_HN @ wanted_N)

            def feed(x_BTD):
                return block.mlp(x_BTD, context), None

            y_BTD, (found, _) = block.join(x_BTD, mix, feed, context)
            return y_BTD, carry, found

        context = context._replace(tokens_BT=tokens_BT)
        x_BTD = teacher.embed(tokens_BT, jnp.float32)
        return teacher.apply_layers(apply, x_BTD, context, inputs=states)[2]


def _output_heads(mixer: Any, width: int) -> int | None:
    """The heads that the output projection reads; 1 where its input has none; None for attention."""
    if isinstance(mixer, AttentionConfig):
        return None
    parts = kinds.parts_of(mixer, width)
    return parts["out"][0].heads if "out" in parts else 1


def _whole_documents(tokens_BT: jax.Array) -> SequenceContext:
    """The context of a document a row; not a constant of the program, which XLA would fold for long."""
    return SequenceContext.of((tokens_BT >= 0).astype(jnp.int32))

"""How well a linear classifier predicts the needle's class from each layer's residual stream."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from hybridlm.models.mixers.rows import take
from hybridlm.models.params import Model, Params
from hybridlm.probes.layers import View, mixer_names, over_layers
from hybridlm.probes.probe import Probe, Subject
from hybridlm.probes.prompts import Prompts
from hybridlm.probes.table import Table

INVERSE_STRENGTH = 0.1  # scikit-learn's C, as the paper sets it
TEST_SHARE = 0.2
MAX_ITERATIONS = 1000


@dataclasses.dataclass(frozen=True)
class LayerAccuracy:
    """The accuracy of the classifier on one layer.

    Attributes:
      accuracy: on held-out prompts.
      train_accuracy: on the prompts that the classifier was fitted to.
      chance: share of the most common class among the held-out prompts.
      gain: accuracy minus the accuracy of the layer below; for the lowest layer, minus `chance`.
    """

    layer: int
    mixer: str
    accuracy: float
    train_accuracy: float
    chance: float
    gain: float


def layer_probing(
    model: Model,
    params: Params,
    prompts: Prompts,
    labels_N: np.ndarray,
    *,
    feature: Literal["residual", "delta"] = "residual",
    seed: int = 0,
    batch: int = 8,
    dtype: jnp.dtype = jnp.float32,
) -> Table[LayerAccuracy]:
    """Logistic regression from each layer to the prompts' classes (arXiv 2606.15378, its code).

    The feature is the residual stream after the layer at the question's last token (which predicts
    the answer's first token), or with "delta" what the layer added to the stream. Features are
    standardised. The classifier is `fit_logistic` with C = 0.1 on 80% of the prompts; `seed` draws
    these prompts, which are the same for all layers.

    Args:
      labels_N: int, the class of each prompt; at least two classes.

    Raises:
      ValueError: if the number of labels differs from the number of prompts, there is only one
        class, or there are too few prompts.
    """
    labels_N = np.asarray(labels_N)
    if labels_N.shape != (len(prompts),):
        raise ValueError(f"{len(prompts)} prompts need as many labels, not {labels_N.shape}")
    if len(np.unique(labels_N)) < 2:
        raise ValueError("all prompts have one class: a classifier needs at least two")
    held_out = int(np.ceil(TEST_SHARE * len(prompts)))
    order = np.random.default_rng(seed).permutation(len(prompts))
    test, train = order[:held_out], order[held_out:]
    if len(np.unique(labels_N[train])) < 2:
        raise ValueError(f"{len(prompts)} prompts are too few: 80% of them have one class")
    measure = {"residual": _residual, "delta": _delta}[feature]
    found = over_layers(model, params, prompts, measure, batch=batch, dtype=dtype)
    chance = float(np.bincount(np.unique(labels_N, return_inverse=True)[1][test]).max() / held_out)
    names, entries, before = mixer_names(model), [], chance
    for layer, x_ND in found.items():
        x_ND = np.asarray(x_ND, np.float64)
        if not np.isfinite(x_ND).all():
            before = math.nan
            entries.append(LayerAccuracy(layer, names[layer], before, before, chance, before))
            continue
        mean_D, deviation_D = x_ND[train].mean(0), x_ND[train].std(0)
        x_ND = (x_ND - mean_D) / np.where(deviation_D > 0, deviation_D, 1)
        fit = fit_logistic(x_ND[train], labels_N[train])
        right = fit.predict(x_ND) == labels_N
        accuracy = float(right[test].mean())
        trained = float(right[train].mean())
        gain = accuracy - before
        entries.append(LayerAccuracy(layer, names[layer], accuracy, trained, chance, gain))
        before = accuracy
    return Table(
        "layer_probing",
        f"held-out accuracy of a logistic regression from each layer's {feature} at the question's"
        " end to the needle's class",
        "arXiv 2606.15378",
        tuple(entries),
    )


class Logistic(NamedTuple):
    """A fitted classifier; the scores of the classes are x @ weights_DC + bias_C."""

    classes_C: np.ndarray
    weights_DC: np.ndarray
    bias_C: np.ndarray

    def predict(self, x_ND: np.ndarray) -> np.ndarray:
        """The likeliest class of each row."""
        return self.classes_C[np.argmax(x_ND @ self.weights_DC + self.bias_C, axis=1)]


def fit_logistic(
    x_ND: np.ndarray, labels_N: np.ndarray, inverse_strength: float = INVERSE_STRENGTH
) -> Logistic:
    """Multinomial logistic regression: minimises C * sum of nll + ||weights||^2 / 2 by L-BFGS.

    The bias is not penalised; C is `inverse_strength`. This is the objective of scikit-learn's
    LogisticRegression.
    """
    from scipy.optimize import minimize  # here: it takes a third of a second to import

    classes_C, index_N = np.unique(labels_N, return_inverse=True)
    size, count = x_ND.shape[1], len(classes_C)
    onehot_NC = np.eye(count)[index_N]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights_DC, bias_C = np.split(flat.reshape(size + 1, count), [size])
        scores_NC = x_ND @ weights_DC + bias_C
        scores_NC = scores_NC - scores_NC.max(axis=1, keepdims=True)
        log_p_NC = scores_NC - np.log(np.exp(scores_NC).sum(axis=1, keepdims=True))
        loss = -inverse_strength * log_p_NC[onehot_NC > 0].sum() + 0.5 * np.sum(weights_DC**2)
        error_NC = inverse_strength * (np.exp(log_p_NC) - onehot_NC)
        gradient = np.concatenate([x_ND.T @ error_NC + weights_DC, error_NC.sum(0, keepdims=True)])
        return float(loss), gradient.ravel()

    start = np.zeros((size + 1) * count)
    options = {"maxiter": MAX_ITERATIONS, "gtol": 1e-5, "ftol": 1e-12}
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    weights_DC, bias_C = np.split(best.reshape(size + 1, count), [size])
    return Logistic(classes_C, weights_DC, bias_C[0])


def _residual(view: View):
    return take(view.y_BTD, view.batch.rows_BQ[:, :1])[:, 0]


def _delta(view: View):
    return take(view.y_BTD - view.x_BTD, view.batch.rows_BQ[:, :1])[:, 0]


def _run(subject: Subject, step: int | None, params: Params) -> Iterator[Table[Any]]:
    prompts, labels_N = subject.classified
    seed = subject.settings.seed
    yield layer_probing(subject.model, params, prompts, labels_N, seed=seed, **subject.options)


LAYER_PROBING = Probe(
    "layer_probing",
    "how well each layer's residual stream predicts the needle",
    "logistic regression (C = 0.1, standardised features, fitted to 80% of the prompts) from each"
    " layer's residual stream at the question's last token to which of 8 numbers was the needle:"
    " `hard` numbers differ in the last digit (arXiv 2606.15378)",
    _run,
    reads=("classified",),
)

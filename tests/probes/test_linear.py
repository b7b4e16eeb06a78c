"""The linear probe on separable data, on noise, at its optimum, and on a known model."""

import known
import numpy as np
import pytest

from hybridlm import probes
from hybridlm.probes import Prompts, fit_logistic


def test_separable_classes_are_separated_and_noise_gives_chance():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    centres = 4 * rng.standard_normal((4, 10))
    x = centres[labels] + rng.standard_normal((400, 10))
    fit = fit_logistic(x[:300], labels[:300])
    assert np.mean(fit.predict(x[300:]) == labels[300:]) > 0.99
    noise = rng.standard_normal((1200, 10))
    labels = rng.integers(0, 4, 1200)
    fit = fit_logistic(noise[:600], labels[:600])
    assert abs(np.mean(fit.predict(noise[600:]) == labels[600:]) - 0.25) < 0.07


def test_the_fit_is_the_optimum_of_the_penalised_likelihood():
    """All derivatives of C sum nll + |W|^2 / 2 are 0; the bias has no penalty."""
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((60, 5)), np.asarray([7, 9, 30])[rng.integers(0, 3, 60)]
    fit = fit_logistic(x, labels, inverse_strength=0.5)
    scores = x @ fit.weights_DC + fit.bias_C
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    error = 0.5 * (p - (labels[:, None] == fit.classes_C))
    np.testing.assert_allclose(x.T @ error + fit.weights_DC, 0, atol=2e-4)
    np.testing.assert_allclose(error.sum(0), 0, atol=2e-4)
    assert list(fit.classes_C) == [7, 9, 30]


def test_accuracy_rises_at_the_layer_that_copies_the_class():
    """The needle's token is the class; only layer 1 brings it to the question's last token."""
    model, params = known.induction()
    rng, classes = np.random.default_rng(0), [2, 5, 11]
    labels = rng.choice(classes, 90)
    made = Prompts.of([known.prompt(rng, first=c) for c in labels.tolist()])
    below, above = probes.layer_probing(model, params, made, labels, batch=32)
    assert above.accuracy == above.train_accuracy == 1
    assert below.accuracy < 0.65 and below.chance < 0.6
    assert above.gain == pytest.approx(1 - below.accuracy)
    assert below.gain == pytest.approx(below.accuracy - below.chance)
    _, added = probes.layer_probing(model, params, made, labels, batch=32, feature="delta")
    assert added.accuracy == 1


def test_bad_labels_are_refused():
    model, params = known.induction()
    made = known.prompts(4)
    with pytest.raises(ValueError, match="4 prompts need as many labels"):
        probes.layer_probing(model, params, made, np.zeros(3, int))
    with pytest.raises(ValueError, match="one class"):
        probes.layer_probing(model, params, made, np.zeros(4, int))

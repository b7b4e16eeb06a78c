"""Every mixture of experts that a published model has, with its weights, against that model's block."""

import comparison
import pytest
from mixtures import MIXTURES
from test_mixers_against_oracles import apply

from hybridlm.models.feedforward import read_feedforward


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_equals_oracle(name, fixtures):
    fixture = comparison.Fixture.load(fixtures, name)

    def run(inputs, weights):
        settings, params = MIXTURES[name](weights, fixture.settings)
        config = read_feedforward(settings, "mlp")
        return dict(y=apply(config, params, inputs["x"], 1e-6))

    fixture.compare(run)


def test_every_fixture_of_a_mixture_is_used(fixtures):
    comparison.check_complete(fixtures, MIXTURES, "moe_")

"""A model that is not finite has no figures: no probe takes what NaN looks like for a finding."""

import functools
import math

import jax
import known
import numpy as np
import pytest

from hybridlm import probes
from hybridlm.probes import Head
from hybridlm.probes.induction import induction_heads, repeated_prompts
from hybridlm.probes.table import NOT_FINITE

PROBED = {
    "retrieval_heads": probes.retrieval_heads,
    "entropy": probes.attention_entropy,
    "induction_heads": induction_heads,
    "head_masking": functools.partial(probes.head_masking, retrieval=[Head(1, 0)], draws=1),
    "receptive_field": functools.partial(probes.receptive_field, layers=[1], windows=[3]),
    "layer_probing": functools.partial(probes.layer_probing, labels_N=np.arange(12) % 2),
    "gradient_influence": probes.gradient_influence,
}


@pytest.fixture(scope="module")
def model_and_params():
    return known.induction()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", PROBED)
def test_every_entry_is_nan_and_the_table_says_so(model_and_params, name, value):
    model, params = model_and_params
    params = jax.tree.map(np.copy, params)
    params["embedding"][:, 0] = value
    prompts = known.prompts(12)
    if name == "induction_heads":
        prompts = repeated_prompts(known.VOCAB, 12, 3, seed=0)
    table = PROBED[name](model, params, prompts)
    assert table.broken() == len(table) > 0
    for row in table.rows():
        shown = {k: v for k, v in row.items() if isinstance(v, float)}
        assert sum(math.isnan(v) for v in shown.values()) >= len(shown) - 1, shown
    assert NOT_FINITE in table.text().splitlines()[1]


def test_a_finite_model_is_not_said_to_be_broken(model_and_params):
    table = probes.attention_entropy(*model_and_params, known.prompts(12))
    assert table.broken() == 0 and NOT_FINITE not in table.text()

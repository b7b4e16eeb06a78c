"""What parameters carry for the optimizer."""

import pytest
import small
from flax.traverse_util import flatten_dict

from hybridlm.models.params import Model


@pytest.mark.parametrize("tied", [True, False])
def test_weight_decay_reaches_kernels_and_nothing_else(tied):
    """As docs/config.md says of optimizer.weight_decay: those of gates and of a head too."""
    model = Model.of(small.model_config(" ".join(small.MIXERS), tie_embeddings=tied))
    decay = flatten_dict(model.decay)
    reached = {path for path, decays in decay.items() if decays}
    assert reached == {path for path in decay if path[-1] == "kernel"}
    assert any("gate" in path for path in reached) and ("head", "kernel") in reached or tied

"""A run begins with the tensors of a checkpoint of transformers, in any layout of layers."""

import pathlib

import jax
import numpy as np
import pytest

from hybridlm.config import to_dict
from hybridlm.convert import open_checkpoint
from hybridlm.errors import ConfigError
from hybridlm.train import setup
from hybridlm.train.init_from import start_state
from hybridlm.train.init_plan import make_plan
from tests.train.stages import config, model_and_state

FOLDER = pathlib.Path(__file__).parents[1] / "convert" / "fixtures" / "smollm3"


def started(**init):
    """(model, parameters) of a run that begins from the checkpoint, and the checkpoint's."""
    checkpoint = open_checkpoint(FOLDER)
    settings = to_dict(checkpoint.model.config) | {"vocab_size": None}
    names = checkpoint.model.config.layout.labels
    layout = dict(pattern=names[0], prefix="", suffix=" ".join(names[1:]), depth=len(names))
    new = config(settings | layout, init=dict(path=str(FOLDER), **init))
    plan = make_plan(*setup.resolve(new))
    model, fresh = model_and_state(new)
    state, lineage = start_state(plan, fresh)
    found = model.by_name(jax.tree.map(np.asarray, state["params"]))
    return found, checkpoint.model.by_name(checkpoint.params()), lineage


def test_a_run_with_another_tokenizer_takes_the_layers():
    fresh = "embedding|head"
    tied = open_checkpoint(FOLDER).model.config.tie_embeddings
    found, wanted, lineage = started(fresh="embedding" if tied else fresh)
    assert lineage[0].path == str(FOLDER) and lineage[0].parameters_sha256
    for name in wanted:
        if not name.startswith(("embedding", "head")):
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_another_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="was trained with another tokenizer"):
        started()

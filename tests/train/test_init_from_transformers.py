"""A run begins with the tensors of a checkpoint of transformers, in any layout of layers."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from hybridlm.config import to_dict
from hybridlm.convert import open_checkpoint
from hybridlm.errors import ConfigError
from hybridlm.runs.checkpoint import digest
from hybridlm.runs.json_files import write_json
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


PROGRAM = """
import sys
import jax, numpy as np
from hybridlm import config as configs
from hybridlm.runs.checkpoint import digest
from hybridlm.train import setup
from hybridlm.train.init_from import start_state
from hybridlm.train.init_plan import make_plan

config, tokenizer = setup.resolve(configs.read_json(sys.argv[1]))
plan = make_plan(config, tokenizer)
lowered = setup.lower_step(config, tokenizer.token_bytes(), jax.devices())
state, _ = start_state(plan, lowered.init_state(config.seed))
placed = jax.tree.map(lambda x, y: x.sharding == y.sharding, state, lowered.abstract)
assert jax.tree.all(placed), placed
params = state["params"]
split = [x for x in jax.tree.leaves(params) if not x.is_fully_replicated]
layers = {k: x for k, x in params.items() if k in ("prefix", "unit", "suffix")}
print(len(split), digest(jax.tree.map(np.asarray, layers)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(fsdp=4), dict(fsdp=2, context=2), dict(data=2, fsdp=2)])
def test_a_mesh_begins_with_the_bits_of_the_checkpoint(mesh, tmp_path, in_root):
    """Each device gets its shards, of the tensors that stand in the files."""
    checkpoint = open_checkpoint(FOLDER)
    settings = to_dict(checkpoint.model.config) | {"vocab_size": None}
    fresh = "embedding" if checkpoint.model.config.tie_embeddings else "embedding|head"
    init = dict(path=str(FOLDER), fresh=fresh)
    new = to_dict(config(settings, init=init, data=dict(batch_size=4)))
    write_json(tmp_path / "config.json", {**new, "mesh": {**new["mesh"], "data": 1, **mesh}})
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "config.json")],
        env=os.environ | dict(XLA_FLAGS=flags),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    split, found = done.stdout.split()
    params = checkpoint.params()
    layers = {k: x for k, x in params.items() if k in ("prefix", "unit", "suffix")}
    assert layers and found == digest(layers)
    assert int(split) > 5

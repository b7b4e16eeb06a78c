"""Small configs, and runs whose checkpoints are drawn and not trained, for tests of stages."""

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm import config as configs
from hybridlm.config import to_dict
from hybridlm.models.params import Model
from hybridlm.runs import checkpoint, json_files, metrics, workdir
from hybridlm.train import setup
from hybridlm.train.optimizer import optimizer_of
from hybridlm.train.state import begin

MODEL = dict(
    width=16,
    depth=4,
    pattern="swa rec",
    mixers=dict(
        swa=dict(kind="attention", heads=2, window=8),
        full=dict(kind="attention", heads=2),
        rec=dict(kind="short_conv"),
    ),
    mlp=dict(kind="swiglu", hidden=16),
    tie_embeddings=False,
)
SOURCE = dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")


def config(model=None, *, optimizer=None, init=None, data=None, **train):
    """A config of a few steps on the demo's corpus; arguments add to its sections."""
    steps = dict(steps=6, log_every=1, eval_every=3, checkpoint_every=3, eval_sequences=2)
    return configs.read(
        dict(
            model={**MODEL, **(model or {})},
            data=dict(sources=dict(a=SOURCE), seq_len=32, batch_size=2) | (data or {}),
            optimizer=dict(lr=3e-3, schedule="constant") | (optimizer or {}),
            train={**steps, "tensorboard": False, **train},
            init=init,
        )
    )


def model_and_state(config, seed=0):
    """The model of a config, and a train state of drawn parameters and an optimizer at its start."""
    config, _ = setup.resolve(config)
    model, rng = Model.of(config.model), np.random.default_rng(seed)
    trainable, optimizer = optimizer_of(config.optimizer, model)
    ema = config.train.ema_decay is not None
    return model, begin(drawn(model.abstract, rng), optimizer, trainable, ema)


def drawn(tree, rng, whole=0):
    """Arrays of the tree's shapes and dtypes, drawn; whole numbers are `whole`."""

    def draw(x):
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(0.1 * rng.uniform(size=x.shape) if floats else whole, x.dtype)

    return jax.tree.map(draw, tree)


def drawn_run(path, config, step=4):
    """Writes a run whose checkpoint of `step` has drawn arrays; returns its state."""
    resolved, tokenizer = setup.resolve(config)
    state = drawn(model_and_state(config)[1], np.random.default_rng(3), step)
    path.mkdir(parents=True)
    json_files.write_json(path / workdir.CONFIG, to_dict(resolved))
    writer = metrics.JsonlWriter(path / metrics.FILE)
    facts = {"data": {"tokenizer": tokenizer.fingerprint, "sources": {}}}
    writer.write({"kind": "run", "step": 0, **facts})
    writer.close()
    checkpoints = checkpoint.Checkpoints(path, keep=2)
    checkpoints.save(step, state, {"step": step, "tokens": 1000})
    checkpoints.close()
    return jax.tree.map(np.asarray, state)

"""Run on 8 simulated devices: prints the largest difference between a mesh and one device, as JSON.

For each mesh a mixture with drawn options: its output, its loss and every gradient, in float64; and the
losses of a model with two mixtures over three steps of the optimizer, in float32.

Arguments: "few" or "all" meshes, the number of mixtures for each, and optionally "fault": the devices
then exchange tokens in one round, whatever number they need, on the first mesh only.
"""

import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "models"))
import moe_reference
import small
from programs import difference, mesh_of

from hybridlm.models.feedforward import read_feedforward
from hybridlm.models.mixers import LayerSpec
from hybridlm.models.params import Model
from hybridlm.parallel import expert_exchange
from hybridlm.parallel import mesh as meshes
from hybridlm.parallel.axes import spec
from hybridlm.train.optimizer import make_optimizer
from hybridlm.train.settings import OptimizerConfig, TrainConfig
from hybridlm.train.state import abstract_state, init_state
from hybridlm.train.step import make_train_step

MESHES = {
    "data 2, expert 4": dict(data=2, expert=4),
    "expert 2": dict(expert=2),
    "expert 4": dict(expert=4),
    "expert 8": dict(expert=8),
    "fsdp 4, expert 2": dict(fsdp=4, expert=2),
    "context 2, expert 4": dict(context=2, expert=4),
    "fsdp 2, tensor 2, expert 2": dict(fsdp=2, tensor=2, expert=2),
    "context 2, fsdp 2, expert 2": dict(context=2, fsdp=2, expert=2),
    "tensor 2, data 4": dict(tensor=2, data=4),
}
FEW = ("expert 8", "fsdp 2, tensor 2, expert 2")
OF_MODELS = ("data 2, expert 4", "fsdp 2, tensor 2, expert 2", "context 2, fsdp 2, expert 2")
WIDTH = 8
BALANCED = dict(scores="sigmoid", choice_bias=True, choice_bias_rate=0.1, normalize=True)


def mixture(sizes, seed):
    rng = np.random.default_rng(seed)
    settings = moe_reference.draw(rng) | dict(hidden=6, balance_weight=0.3, z_weight=0.1)
    settings |= dict(latent=settings["latent"] and 4, shared_hidden=settings["shared_hidden"] and 6)
    settings["experts"] *= 8 // math.gcd(8, settings["experts"])
    module = read_feedforward(settings, "mlp").build(
        LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(seed)
    )
    graphdef, state = nnx.split(module)
    params = jax.tree.map(
        lambda p: jnp.asarray(p + 0.3 * rng.standard_normal(p.shape)), nnx.to_pure_dict(state)
    )
    axes = {path: v.get_metadata()["axes"] for path, v in nnx.to_flat_state(state)}
    ids = small.random_segments(rng, 8, 6)
    x, dy = (jnp.asarray(rng.standard_normal((8, 6, WIDTH))) for _ in range(2))

    def objective(params, x):
        bound = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(bound, params)
        y, loss = nnx.merge(graphdef, bound).with_loss(x, small.context(ids))
        return jnp.sum(y * dy) + loss, (y, loss)

    run = jax.value_and_grad(objective, (0, 1), has_aux=True)
    expected = jax.jit(run)(params, x)
    mesh = mesh_of(sizes)

    def place(path, p):
        names = axes[tuple(k.key for k in path)]
        return jax.device_put(p, jax.NamedSharding(mesh, spec(names)))

    placed = jax.tree_util.tree_map_with_path(place, params)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, meshes.sharding(mesh, ("batch", "time", None)))
        return difference(jax.jit(run)(placed, x), expected)


def losses(sizes):
    routed = dict(kind="moe", experts=8, top_k=2, hidden=16, balance_weight=0.1)
    config = small.model_config(
        "full swa+big",
        depth=4,
        width=16,
        mlp=routed | dict(router=BALANCED),
        feedforwards=dict(big=routed | dict(top_k=3, bias=True, shared_hidden=8)),
        mixers={n: dict(kind="attention", heads=2) for n in ("full", "swa")},
    )
    optimizer = OptimizerConfig(lr=1e-2, name="muon", schedule="constant")
    train = TrainConfig(steps=3, accumulate=2, remat="dots")
    rng = np.random.default_rng(0)
    ids = np.stack([small.random_segments(rng, 8, 12) for _ in range(2)])
    tokens = rng.integers(0, 40, ids.shape)
    batch = dict(
        tokens=tokens,
        targets=np.roll(tokens, -1, -1),
        loss_weights=(ids != 0).astype(np.float32),
        segment_ids=ids,
        positions=np.stack([small.context(i).positions_BT for i in ids]),
    )
    mesh = mesh_of(sizes)
    with jax.set_mesh(mesh):
        model = Model.of(config)
        made = make_optimizer(optimizer, model.decay, model.muon)
        shardings = jax.tree.map(lambda x: x.sharding, abstract_state(model, made, mesh))
        init = jax.jit(lambda k: init_state(model, made, k), out_shardings=shardings)
        state = init(jax.random.key(0))
        step = make_train_step(model, made, train, optimizer, np.ones(40, np.float32), jnp.float32)
        step = jax.jit(step, out_shardings=(shardings, meshes.replicated(mesh)))
        batch = {k: jax.device_put(v, meshes.batch_sharding(mesh)) for k, v in batch.items()}
        found = []
        for _ in range(train.steps):
            state, metrics = step(state, batch)
            found += [
                float(metrics["loss"]),
                float(metrics["aux_loss"]),
                float(metrics["expert_violation"]),
            ]
        up = state["params"]["unit"]["1_swa+big"]["mlp"]["experts"]["up"]
        return found, list(up.addressable_shards[0].data.shape)


def all_mixtures(names, seeds):
    """With few rows in a round, so that most mixtures take several."""
    expert_exchange.ROOM, expert_exchange.MULTIPLE = 0.4, 1
    with jax.enable_x64(True):
        return {n: max(mixture(MESHES[n], 10 * i + s) for s in seeds) for i, n in enumerate(names)}


if __name__ == "__main__":
    which, seeds, *fault = sys.argv[1:]
    names = list(MESHES) if which == "all" else FEW
    if fault:
        expert_exchange._rounds = lambda counts_S, capacity: jnp.int32(1)
        names = names[:1]
    models = {}
    if which == "all":
        models = {n: losses(MESHES[n]) for n in OF_MODELS} | {"one device": losses(dict(data=1))}
    found = all_mixtures(names, range(int(seeds)))
    print(json.dumps(dict(mixtures=found, models=models)))

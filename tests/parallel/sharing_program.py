"""Run with 8 simulated devices: models whose layers hand arrays on, on meshes and on one device.

Arguments: a case, and meshes. Prints as JSON, for each mesh, the largest difference between it and one
device of the hidden states, the layers' own loss, and all gradients, in float64.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "models"))
import small
from programs import difference, mesh_of

from hybridlm.parallel import mesh as meshes

BATCH, TIME = 8, 24
MESHES = {
    "data 2, fsdp 2, tensor 2": dict(data=2, fsdp=2, tensor=2),
    "tensor 2, context 2, expert 2": dict(tensor=2, context=2, expert=2),
    "fsdp 2, expert 4": dict(fsdp=2, expert=4),
}
NEAR = dict(kind="attention", heads=4, kv_heads=2, head_dim=8, window=5, qk_norm=True)
FAR = dict(kind="attention", heads=4, kv_heads=2, head_dim=16, rope=None)
POOLED = dict(
    kind="dsa",
    heads=4,
    kv_rank=10,
    q_rank=12,
    qk_nope=6,
    qk_rope=4,
    value_dim=7,
    index_heads=4,
    index_dim=6,
    top_k=6,
    pool=3,
    index_loss=0.0,
)
EXPERTS = dict(kind="moe", experts=8, top_k=2, hidden=16, shared_hidden=16, clamp=0.5)


CASES = {
    # Keys and values of two layers below, per-layer inputs, clamps.
    "keys": dict(
        pattern="near far near_in far_in near_in",
        prefix="near far",
        depth=12,
        mixers=dict(
            near=dict(NEAR, kv_out="near"),
            far=dict(FAR, v_norm=True, kv_out="far"),
            near_in=dict(NEAR, kv_in="near"),
            far_in=dict(FAR, kv_in="far"),
        ),
        mlp=dict(kind="gated", hidden=48, clamp=0.5),
        block="scaled_sandwich",
        per_layer=dict(size=8),
    ),
    # Pools of keys, chosen once for two layers, on several residual streams, with clamped experts.
    "streams": dict(
        pattern="rec own reader+moe",
        depth=6,
        mixers=dict(
            rec=dict(kind="kda", heads=4, lower_bound=-5.0),
            own=dict(POOLED, index_out="i"),
            reader=dict(POOLED, index_in="i"),
        ),
        mlp=dict(kind="gated", hidden=48, clamp=0.5),
        feedforwards=dict(moe=EXPERTS),
        streams=dict(count=3, iterations=4, eps=1e-3),
    ),
}


def made(case: str):
    """The model, its parameters, and a function of parameters and arrays with all gradients."""
    dtype = jnp.float64
    model, params = small.make(small.model_config(**CASES[case]), dtype=dtype)
    rng = np.random.default_rng(1)
    ids_BT = small.random_segments(rng, BATCH, TIME)
    tokens_BT = rng.integers(0, 40, ids_BT.shape).astype(np.int32)
    cotangent_BTD = rng.standard_normal((*ids_BT.shape, 32))

    def objective(params, tokens_BT, context, cotangent_BTD):
        x_BTD, loss = model.bind(params).hidden_and_loss(tokens_BT, context, dtype=dtype)
        real_BTD = jnp.where((context.segment_ids_BT == 0)[..., None], 0, x_BTD)
        return jnp.sum(real_BTD * cotangent_BTD) + loss, (real_BTD, loss)

    run = jax.value_and_grad(objective, has_aux=True)
    return model, params, run, (tokens_BT, small.context(ids_BT), cotangent_BTD)


def on_mesh(sizes, model, params, arrays):
    """The mesh, and parameters and arrays on it."""
    mesh = mesh_of(sizes)
    split = meshes.sharding(mesh, ("batch", "time"))
    params = jax.device_put(params, meshes.shardings(mesh, model.abstract, model.axes))
    return mesh, params, jax.tree.map(lambda x: jax.device_put(x, split), arrays)


def equal(case: str, names: list[str]) -> dict[str, float]:
    model, params, run, arrays = made(case)
    expected = jax.device_get(jax.jit(run)(params, *arrays))
    found = {}
    for name in names:
        mesh, placed, split = on_mesh(MESHES[name], model, params, arrays)
        with jax.set_mesh(mesh):
            found[name] = difference(jax.device_get(jax.jit(run)(placed, *split)), expected)
    return found


if __name__ == "__main__":
    chosen, *rest = sys.argv[1:]
    with jax.enable_x64(True):
        print(json.dumps(equal(chosen, rest)))

"""Run with eight simulated devices: `equal MIXER...` or `collectives`.

`equal` compares mixers with rows and time split over devices to one device, in float64: outputs and
gradients must agree. `collectives` prints the compiled training step of a hybrid with time split in
8.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "models"))
import small

from hybridlm import config
from hybridlm.config import MeshConfig
from hybridlm.models.mixers import LayerSpec, SequenceContext, read_mixer
from hybridlm.parallel.mesh import make_mesh, sharding
from hybridlm.train import setup
from kernels_pallas.testing import assert_close, draw_segment_ids

WIDTH, BATCH, TIME = 32, 2, 48
MESHES = (dict(context=4), dict(data=2, context=2), dict(tensor=2, context=2))
HYBRID = {
    "model.mixers.gdn": "{'kind': 'gdn', 'heads': 4}",
    "model.mixers.ssd": "{'kind': 'mamba2', 'head_dim': 16, 'state_dim': 16}",
    "model.mixers.conv": "{'kind': 'short_conv'}",
    "model.pattern": "rec swa full gdn ssd conv",
    "model.depth": "12",
    "data.batch_size": "3",
    "data.seq_len": "176",
    "mesh.data": "1",
    "mesh.context": "8",
}


def equal(name: str) -> None:
    rng = np.random.default_rng(0)
    mixer = read_mixer(small.MIXERS[name], name)
    module = mixer.build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(module)
    params = jax.tree.map(
        lambda p: p.astype(jnp.float64) + 0.1 * rng.standard_normal(p.shape), params
    )
    x_BTD, cotangent_BTD = jnp.asarray(rng.standard_normal((2, BATCH, TIME, WIDTH)))
    ids_BT = draw_segment_ids(rng, BATCH, TIME, padding=0.1)
    index_BT = jnp.broadcast_to(jnp.arange(TIME, dtype=jnp.int32), ids_BT.shape)

    def outputs_and_gradients(params, x_BTD, ids_BT, positions_BT):
        def loss(params, x_BTD):
            y_BTD = nnx.merge(graphdef, params)(x_BTD, SequenceContext(ids_BT, positions_BT))
            y_BTD = jnp.where((ids_BT == 0)[..., None], 0, y_BTD)
            return jnp.sum(y_BTD * cotangent_BTD), y_BTD

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x_BTD)

    arrays = x_BTD, ids_BT, index_BT
    want = jax.jit(outputs_and_gradients)(params, *arrays)
    for shape in MESHES:
        sizes = dict(data=1, tensor=1) | shape
        mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: np.prod(list(sizes.values()))])
        with jax.set_mesh(mesh):
            split = jax.device_put(arrays, sharding(mesh, ("batch", "time")))
            got = jax.jit(outputs_and_gradients)(params, *split)
        assert_close(f"{name} on {shape}", jax.device_get(got), jax.device_get(want), 1e-10)
    print(name)


def collectives() -> None:
    made, _ = setup.resolve(config.load("configs/demo.py:smoke", list(HYBRID.items())))
    lowered = setup.lower_step(made, np.ones(made.model.vocab_size, np.float32), jax.devices())
    print(lowered.step.compile().as_text())


if __name__ == "__main__":
    if sys.argv[1] == "collectives":
        collectives()
    else:
        with jax.enable_x64(True):
            for mixer_name in sys.argv[2:]:
                equal(mixer_name)

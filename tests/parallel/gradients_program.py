"""Run on 8 simulated devices: how far gradients on a mesh are from one device's, as JSON.

For each mesh, the largest difference of the gradients of a linear map and of the losses' head and hidden
states (cross-entropy and divergence to a teacher), relative to each array's largest entry, in float64;
with several stages; with gradients sent in bfloat16; and, of the collectives in the compiled program, all
kinds and those whose result is as large as a kernel.
"""

import functools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.config import MeshConfig
from hybridlm.distill.kl import summed_divergence
from hybridlm.models.layers import matmul
from hybridlm.models.loss import LossSettings, summed_cross_entropy
from hybridlm.parallel import gradients
from hybridlm.parallel import mesh as meshes
from hybridlm.parallel.axes import spec, split_over_batch
from kernels_pallas.testing import collectives

jax.config.update("jax_enable_x64", True)
MESHES = [
    dict(fsdp=8),
    dict(data=2, fsdp=4),
    dict(fsdp=2, expert=2, context=2),
    dict(fsdp=2, tensor=2, expert=2),
    dict(data=2, tensor=2, context=2),
]
STAGES = dict(fsdp=(2, 2, 2))
rng = np.random.default_rng(int(sys.argv[1]))
rows, time, width, hidden, vocab = 8, 2 * int(rng.integers(1, 5)), 16, 24, 40
arrays = dict(
    up=rng.normal(size=(width, hidden)) / 4,
    down=rng.normal(size=(hidden, width)) / 4,
    head=rng.normal(size=(width, vocab)) / 4,
    x=rng.normal(size=(rows, time, width)),
)
AXES = dict(
    up=("embed", "mlp"),
    down=("mlp", "embed"),
    head=("embed", "vocab"),
    x=("batch", "time", None),
)
targets = jnp.asarray(rng.integers(0, vocab, (rows, time)))
weights = jnp.asarray(rng.random((rows, time)))
taught = dict(
    teacher_hidden_BTE=jnp.asarray(rng.normal(size=(rows, time, 8))),
    teacher_head_EV=jnp.asarray(rng.normal(size=(8, vocab))),
)
divergence = functools.partial(summed_divergence, **taught)


def loss(arrays):
    x = split_over_batch(arrays["x"])
    y = split_over_batch(
        matmul(jnp.tanh(matmul(x, arrays["up"], AXES["up"])), arrays["down"], AXES["down"])
    )
    options = LossSettings(None, 1e-2)
    total, _ = summed_cross_entropy(x + y, arrays["head"], targets, weights, options)
    return total + divergence(x + y, arrays["head"], targets_BT=targets, weights_BT=weights).total


def on(sizes, dtype="float64", stages=None):
    """Gradients on a mesh, and the compiled program."""
    mesh = meshes.make_mesh(
        MeshConfig(**dict(data=1) | sizes), jax.devices()[: math.prod(sizes.values())]
    )
    shardings = {n: jax.NamedSharding(mesh, spec(AXES[n])) for n in arrays}
    with jax.set_mesh(mesh), gradients.sent_over(mesh, dtype, stages):
        step = jax.jit(jax.grad(loss), out_shardings=shardings)
        compiled = step.lower(jax.device_put(arrays, shardings)).compile()
    return compiled(jax.device_put(arrays, shardings)), compiled.as_text()


def difference(found, expected):
    return max(
        float(np.abs(np.asarray(found[n]) - expected[n]).max() / np.abs(expected[n]).max())
        for n in expected
    )


expected = jax.tree.map(np.asarray, jax.grad(loss)(arrays))
found = {str(sizes): difference(on(sizes)[0], expected) for sizes in MESHES}
found["stages"] = difference(on(dict(fsdp=8), stages=STAGES)[0], expected)
rounded, text = on(dict(fsdp=8), "bfloat16")
sent = [(kind, math.prod(shape)) for kind, _, shape in collectives(text)]
print(
    json.dumps(
        dict(
            exact=found,
            bfloat16=difference(rounded, expected),
            kinds=sorted({kind for kind, _ in sent}),
            whole=sorted({kind for kind, size in sent if size >= width * hidden}),
        )
    )
)

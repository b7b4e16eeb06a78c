"""Times every chunked op forward and backward, and the same op of jax-linear-attention.

Runs in the environment of jax-linear-attention, which has the same jax; kernels_pallas comes from
this checkout. Prints one JSON line per measurement.
"""

import argparse
import importlib.metadata
import json
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jla.layers.attention as jla_attention
import jla.layers.conv as jla_conv
import jla.layers.forgetting_attention as jla_forgetting
import jla.ops as jla_ops

from hybridlm.models.mixers import trapezoid
from hybridlm.train import host_memory
from kernels_pallas.attention import attention
from kernels_pallas.block_sparse import block_sparse_attention
from kernels_pallas.causal_conv import causal_conv
from kernels_pallas.delta_rule import delta_rule
from kernels_pallas.delta_rule.product import delta_product
from kernels_pallas.gated_linear import gated_linear
from kernels_pallas.gated_slots import gated_slots
from kernels_pallas.linear_recurrence import linear_recurrence

BATCH, HEADS, SIZE, SLOTS, WINDOW, CHANNELS, TAPS = 1, 4, 64, 64, 128, 1024, 4
BLOCK, BLOCKS = 256, 4  # of the block-sparse attention: keys of a block, blocks chosen
UPDATES, RANK = 2, 4  # of a token: Gated DeltaProduct's updates, Mamba-3's inputs

Arrays = dict[str, jax.Array]
Form = Callable[..., jax.Array]
Results = tuple[jax.Array, tuple[jax.Array, ...]]  # the output, and the gradient of each input


def draw(time_steps: int) -> Arrays:
    """The inputs of all ops; keys are normalised and decays are those of a fresh model."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((BATCH, time_steps, *shape)), jnp.float32)

    def key(*shape: int) -> jax.Array:
        x = normal(*shape)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    removal = key(HEADS, SIZE)
    return dict(
        q=normal(HEADS, SIZE) * SIZE**-0.5,
        k=key(HEADS, SIZE),
        v=normal(HEADS, SIZE),
        erase=jax.nn.sigmoid(normal(HEADS, SIZE)),
        write=jax.nn.sigmoid(normal(HEADS, SIZE)),
        keys=key(UPDATES, HEADS, SIZE),
        values=normal(UPDATES, HEADS, SIZE),
        betas=jax.nn.sigmoid(normal(UPDATES, HEADS)),
        removal=removal,
        removed=removal * jax.nn.sigmoid(normal(HEADS, SIZE)),
        step=jnp.exp(normal(HEADS) - 3),
        weight=jax.nn.sigmoid(normal(HEADS)),
        q_ranks=normal(HEADS, RANK, SIZE) * SIZE**-0.5,
        k_ranks=normal(HEADS, RANK, SIZE) * SIZE**-0.5,
        v_ranks=normal(HEADS, RANK, SIZE),
        head_decay=-jnp.exp(normal(HEADS) - 3),
        channel_decay=-jnp.exp(normal(HEADS, SIZE) - 3),
        slot_decay=-jnp.exp(normal(HEADS, SLOTS) - 3),
        beta=jax.nn.sigmoid(normal(HEADS)),
        a=jax.nn.sigmoid(normal(CHANNELS) + 3),
        x=normal(CHANNELS),
        taps=jnp.asarray(rng.standard_normal((TAPS, CHANNELS)), jnp.float32),
    )


def peer(kind: str, **names: str) -> Form:
    """jax-linear-attention's chunked op as a function of q, k, v and the gates `names` gives."""

    def form(q, k, v, *gates):
        options = dict(zip(names, gates))
        return jla_ops.linear_attention(kind, q, k, v, impl="chunked", scale=1.0, **options)[0]

    return form


def peer_conv(x, taps):
    conv = jla_conv.ShortConv(CHANNELS, TAPS, activation=None)
    object.__setattr__(conv, "weight", taps[::-1].T)
    out = conv(x)
    return out[0] if isinstance(out, tuple) else out


def peer_window(q, k, v):
    return jla_attention.attention(q, k, v, sliding_window=WINDOW, scale=1.0)


def peer_forgetful(q, k, v, log_forget):
    options = dict(sliding_window=WINDOW, scale=1.0)
    return jla_forgetting.forgetting_attention(q, k, v, log_forget, **options)


def product(q, keys, values, betas, log_decay):
    ids = jnp.ones(q.shape[:2], jnp.int32)
    options = dict(segment_ids=ids, scale=1.0)
    return delta_product(delta_rule, q, keys, values, betas, log_decay, **options)


def peer_product(q, keys, values, betas, log_decay):
    k, v, beta = (x.reshape(BATCH, -1, *x.shape[3:]) for x in (keys, values, betas))
    options = dict(g=log_decay, beta=beta, num_householder=UPDATES, scale=1.0)
    return jla_ops.linear_attention("gated_deltaproduct", q, k, v, impl="chunked", **options)[0]


def rwkv7(q, k, v, log_decay, removal, removed):
    """The two updates of the mixer `rwkv7`."""
    before = removal * jnp.exp(-log_decay)
    return delta_product(
        delta_rule,
        q,
        jnp.stack([removed, k], axis=2),
        jnp.stack([jnp.zeros_like(v), v], axis=2),
        None,
        log_decay,
        erase_BTNGK=jnp.stack([before, jnp.zeros_like(before)], axis=2),
        segment_ids=jnp.ones(q.shape[:2], jnp.int32),
        scale=1.0,
    )


def peer_rwkv7(q, k, v, log_decay, removal, removed):
    gates = dict(w=log_decay, a=-removal, b=removed)
    return jla_ops.linear_attention("rwkv7", q, k, v, impl="chunked", scale=1.0, **gates)[0]


def mamba3(q, k, v, log_decay, step, weight):
    """The recurrence of the mixer `mamba3`, without rotations; a rank is the axis after the heads."""
    ranks = [x if x.ndim == 5 else x[:, :, :, None] for x in (q, k, v)]
    no_angles = jnp.zeros((*step.shape, 0))
    inputs = trapezoid.Inputs(*ranks, log_decay, step, weight, no_angles)
    ids = jnp.ones(step.shape[:2], jnp.int32)
    return trapezoid.trapezoid(inputs, ids, None)[0].reshape(v.shape)


def peer_mamba3(q, k, v, log_decay, step, weight):
    beta, gamma = (1 - weight) * step * jnp.exp(log_decay), weight * step
    kind = "mamba3" if q.ndim == 4 else "mamba3_mimo"
    gates = dict(g=log_decay, beta=beta, gamma=gamma)
    return jla_ops.linear_attention(kind, q, k, v, impl="chunked", scale=1.0, **gates)[0]


#: Op: the inputs it takes, our form, and the peer's where it has one.
OPS: dict[str, tuple[str, Form, Form | None]] = {
    "attention, window 128": (
        "q k v",
        lambda q, k, v: attention(q, k, v, window=WINDOW, scale=1.0)[0],
        peer_window,
    ),
    "attention, window 128, forget gates": (
        "q k v head_decay",
        lambda q, k, v, g: attention(q, k, v, window=WINDOW, log_forget_BTH=g, scale=1.0)[0],
        peer_forgetful,
    ),
    "linear_recurrence": ("a x", lambda a, x: linear_recurrence(a, x), None),
    "causal_conv": ("x taps", lambda x, taps: causal_conv(x, taps), peer_conv),
    "gated_linear, gate per head": (
        "q k v head_decay",
        lambda q, k, v, g: gated_linear(q, k, v, g, scale=1.0),
        peer("simple_gla", g="head_decay"),
    ),
    "gated_linear, gate per channel": (
        "q k v channel_decay",
        lambda q, k, v, g: gated_linear(q, k, v, g, scale=1.0),
        peer("gla", g="channel_decay"),
    ),
    "delta_rule": (
        "q k v beta",
        lambda q, k, v, b: delta_rule(q, k, v, b, scale=1.0),
        peer("deltanet", beta="beta"),
    ),
    "delta_rule, gate per head": (
        "q k v beta head_decay",
        lambda q, k, v, b, g: delta_rule(q, k, v, b, g, scale=1.0),
        peer("gated_deltanet", beta="beta", g="head_decay"),
    ),
    "delta_rule, gate per channel": (
        "q k v beta channel_decay",
        lambda q, k, v, b, g: delta_rule(q, k, v, b, g, scale=1.0),
        peer("kda", beta="beta", g="channel_decay"),
    ),
    "delta_rule, Gated DeltaNet-2": (
        "q k v channel_decay erase write",
        lambda q, k, v, g, b, w: delta_rule(q, k, w * v, None, g, erase_BTGK=b * k, scale=1.0),
        peer("gdn2", g="channel_decay", b="erase", w="write"),
    ),
    "delta_product, 2 updates": ("q keys values betas head_decay", product, peer_product),
    "delta_product, RWKV-7": ("q k v channel_decay removal removed", rwkv7, peer_rwkv7),
    "gated_linear, Mamba-3": ("q k v head_decay step weight", mamba3, peer_mamba3),
    "gated_linear, Mamba-3 of rank 4": (
        "q_ranks k_ranks v_ranks head_decay step weight",
        mamba3,
        peer_mamba3,
    ),
    "block_sparse_attention": (
        "q k v",
        lambda q, k, v: block_sparse_attention(q, k, v, block=BLOCK, top_k=BLOCKS, scale=1.0)[0],
        None,
    ),
    "gated_slots": (
        "q k v slot_decay",
        lambda q, k, v, g: gated_slots(q, k, v, g, scale=1.0)[0],
        None,
    ),
}


def compiled(form: Form, arrays: Arrays, names: list[str]) -> Callable[[], Results]:
    """A call that runs the form, and its gradient in every input from a fixed one of its output."""
    inputs = [arrays[name] for name in names]
    shape = jax.eval_shape(form, *inputs)
    d_out = jax.random.normal(jax.random.key(0), shape.shape, shape.dtype)

    def forward_backward(d_out, *inputs):
        out, pull_back = jax.vjp(form, *inputs)
        return out, pull_back(d_out)

    program = jax.jit(forward_backward).lower(d_out, *inputs).compile()

    def call() -> Results:
        return jax.block_until_ready(program(d_out, *inputs))

    return call


def difference(ours: Results, theirs: Results) -> dict[str, float]:
    """The largest difference of the outputs, and of any gradient, relative to the peer's largest number."""

    def one(x: jax.Array, y: jax.Array) -> float:
        return float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y)))

    gradients = [one(x, y) for x, y in zip(ours[1], theirs[1], strict=True)]
    return {"output_differs": one(ours[0], theirs[0]), "gradient_differs": max(gradients)}


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of the clock, and of all threads of this process."""
    start, own = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - own


def measure(op: str, length: int, repeats: int, with_peer: bool) -> dict:
    """Best seconds of ours and the peer's, in turn; the peer's is None where it has none or
    does not run.

    `ours_cpu` are our threads' seconds, which other programs lengthen less. Where the peer runs,
    `difference` of the results, too.
    """
    names, ours, theirs = OPS[op]
    arrays = draw(length)
    calls = {"ours": compiled(ours, arrays, names.split())}
    record = {"op": op, "tokens": length, "ours": None, "peer": None}
    results: dict[str, Results] = {}
    if theirs is not None and not with_peer:
        record["peer_skipped"] = True
    elif theirs is not None:
        try:
            call = compiled(theirs, arrays, names.split())
            results["peer"] = call()
            calls["peer"] = call
        except Exception as error:  # what a peer cannot do is a result too
            record["peer_failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    times = {name: [] for name in calls}
    results["ours"] = calls["ours"]()
    if "peer" in results:
        record |= difference(results["ours"], results["peer"])
    results.clear()
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    record |= {name: min(wall for wall, _ in values) for name, values in times.items()}
    return record | {"ours_cpu": min(own for _, own in times["ours"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", required=True)
    parser.add_argument("--ops", nargs="+", choices=list(OPS), default=list(OPS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer_up_to", type=int, metavar="TOKENS", help="its longest row")
    options = parser.parse_args()
    # As in the trainer, for both libraries: what is measured is the ops, not the page faults.
    host_memory.keep_large_buffers()
    jax.devices()
    host_memory.reserve_huge_pages(4 * 2**30)
    versions = {p: importlib.metadata.version(p) for p in ("jax", "jax-linear-attention")}
    print(json.dumps({"versions": versions}, allow_nan=False), flush=True)
    for op in options.ops:
        for length in options.lengths:
            with_peer = options.peer_up_to is None or length <= options.peer_up_to
            record = measure(op, length, options.repeats, with_peer)
            print(json.dumps(record, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()

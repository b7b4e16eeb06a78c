"""One training step of hybrids of 1.3B parameters: seconds, and the share of the card's peak.

The model FLOPs count no recomputation. Rows have documents of 1,024 tokens on average.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.gpu_visit import faults, runner
from benchmarks.gpu_visit.ops import DOCUMENT
from benchmarks.gpu_visit.plan import HYBRIDS, KERNEL
from hybridlm import config as configs
from hybridlm.data.packing import concat_sequence
from hybridlm.models.accounting import train_flops_per_token
from hybridlm.parallel import mesh as meshes
from hybridlm.train import setup
from hybridlm.train.throughput import peak_flops
from kernels_pallas import dispatch, measured

ROUNDS, STEPS = 3, 3
HEADS = dict(heads=16, head_dim=128)
SHARED = dict(**HEADS, kv_heads=4)
#: The mixers of `plan.HYBRIDS`.
MIXERS: dict[str, dict[str, Any]] = {
    "windowed": dict(kind="attention", window=1024, qk_norm=True, **SHARED),
    "gdn": dict(kind="gdn", value_dim=128, **HEADS),
    "kda": dict(kind="kda", **HEADS),
    "nha": dict(kind="nha", slots=64, window=512, **SHARED),
}


def settings(mixer: Mapping[str, Any], smoke: bool) -> dict[str, Any]:
    """What a recipe's `get_config` would return: three layers of the mixer, then one of full attention."""
    full = dict(kind="attention", rope=None, qk_norm=True, **SHARED)
    model = dict(
        width=2048,
        depth=24,
        vocab_size=32_000,
        pattern="mixer*3 full",
        mixers=dict(mixer=dict(mixer), full=full),
        mlp=dict(kind="swiglu", hidden=5632),
    )
    data = dict(seq_len=4096, batch_size=8)
    if smoke:
        small = dict(heads=2, head_dim=16)
        for mixer in model["mixers"].values():
            mixer |= small | ({"kv_heads": 1} if "kv_heads" in mixer else {})
            mixer |= {k: 16 for k in ("window", "slots", "value_dim") if mixer.get(k)}
        model |= dict(width=32, depth=4, vocab_size=300)
        model["mlp"] = dict(kind="swiglu", hidden=64)
        data = dict(seq_len=64, batch_size=2)
    sources = dict(random=dict(kind="text", path="made in memory, never opened"))
    return dict(
        seed=0,
        model=model,
        data=dict(data, sources=sources),
        optimizer=dict(lr=3e-4, schedule="constant", warmup_steps=10),
        train=dict(steps=1000, remat="dots"),
    )


def right_kernels(name: str, records: list[dict[str, Any]]) -> list[str]:
    """The ops of a hybrid whose kernels' numbers are right, by the records of a visit."""
    right = {
        r["op"]
        for r in records
        if r["kind"] == "numbers" and r["form"] == KERNEL and r["right"] and not r["sizes"]
    }
    return [op for op, calls in HYBRIDS[name].items() if right.issuperset(calls)]


def step(out, name: str, xla: bool, smoke: bool, compile_only: bool) -> None:
    """Records the seconds of a step and its MFU, or only compiles it.

    Args:
      xla: without kernels; otherwise with all whose numbers are right.

    Raises:
      FloatingPointError: where the loss is not finite.
    """
    config, tokenizer = setup.resolve(configs.read(settings(MIXERS[name], smoke)))
    kernels = [] if xla else right_kernels(name, runner.read(out.path))
    rows = [measured.Row(op, None, None, None, None) for op in kernels]
    start = time.perf_counter()
    with measured.table(rows), dispatch.choices() as made:
        lowered = setup.lower_step(config, tokenizer.token_bytes(), jax.devices())
    train_step = setup.compile_lowered(lowered)
    compiling = time.perf_counter() - start
    backends = sorted({f"{c.op}: {c.backend}" for c in made})
    state = lowered.init_state(config.seed)
    if compile_only:
        jax.block_until_ready(state)
        out.write("compiled", step=name, backends=backends, seconds=round(compiling, 1))
        return
    batch = random_batch(config, lowered.mesh)
    losses, times = [], []
    for round_ in range(1 + ROUNDS):
        start = time.perf_counter()
        for _ in range(STEPS if round_ else 2):
            state, metrics = train_step(state, batch)
        losses.append(float(faults.poisoned(metrics["loss"])))
        times.append((time.perf_counter() - start) / STEPS)
    if not all(np.isfinite(losses)):
        raise FloatingPointError(f"the loss is not finite after {2 + ROUNDS * STEPS} steps")
    seconds = statistics.median(times[1:])
    tokens = config.tokens_per_step
    flops = train_flops_per_token(lowered.model, config.data.seq_len) * tokens
    peak, source = peak_flops(jax.devices())
    memory = jax.devices()[0].memory_stats() or {}
    out.write(
        "step",
        name=name,
        kernels=kernels,
        backends=backends,
        parameters=lowered.model.count(),
        tokens=tokens,
        seconds=seconds,
        spread=[min(times[1:]), max(times[1:])],
        flops=flops,
        mfu=flops / seconds / peak if peak else None,
        peak=source,
        losses=[round(x, 4) for x in losses],
        memory=memory.get("peak_bytes_in_use"),
        compile_seconds=round(compiling, 1),
    )


def random_batch(config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """A batch of the step's: random tokens in documents of random lengths, and the schedule's numbers."""
    _, rows, time_ = setup.batch_shape(config)
    rng = np.random.default_rng(0)
    packed = []
    for _ in range(rows):
        tokens = rng.integers(0, config.model.vocab_size, time_ + 1, dtype=np.int32)
        begins = rng.random(time_ + 1) < 1 / DOCUMENT
        packed.append(concat_sequence(tokens, begins, time_))
    arrays = {n: np.stack([getattr(row, n) for row in packed])[None] for n in packed[0]._fields}
    sharding = meshes.batch_sharding(mesh)
    made = {n: jax.make_array_from_process_local_data(sharding, x) for n, x in arrays.items()}
    return {**made, "schedule": setup.placed_schedule(config, mesh)}

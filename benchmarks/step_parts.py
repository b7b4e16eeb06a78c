"""Where the time of a training step on a CPU goes: its parts, timed one by one.

The shape is that of train_cpu.py. Each part runs alone, forward and backward with gradients to all
its inputs, as often as the step has it; what the step takes beyond their sum (norms, rotary
embeddings, residuals, copies into and out of the scan over layers, waiting) is the last row.

Run:     python benchmarks/step_parts.py --json benchmarks/step_parts.json
Table:   python benchmarks/step_parts.py --render benchmarks/step_parts.json   (into the README)
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import train_cpu

from hybridlm.errors import exit_code

PEERS = train_cpu.HERE / "peers"
BEGIN, END = "<!-- step_parts: begin -->", "<!-- step_parts: end -->"


def parts() -> Iterator[tuple[str, int, float, Callable, tuple]]:
    """(name, how often a step has it, its FLOPs, a function, its arguments)."""
    import jax
    import jax.numpy as jnp
    import measure as shape
    import numpy as np
    import optax

    from hybridlm.models.layers import matmul
    from hybridlm.models.loss import summed_cross_entropy
    from kernels_pallas.attention import attention

    generator = np.random.default_rng(0)

    def normal(*size: int) -> jax.Array:
        return jnp.asarray(generator.standard_normal(size) * 0.1, jnp.float32)

    def both_ways(function: Callable) -> Callable:
        def run(d_out, *inputs):
            out, pull = jax.vjp(function, *inputs)
            return out, pull(d_out)

        return run

    def swiglu(x, gate, up, down):
        return matmul(jax.nn.silu(matmul(x, gate)) * matmul(x, up), down)

    batch, seq, width, mlp, layers = shape.BATCH, shape.TIME, shape.WIDTH, shape.MLP, shape.DEPTH
    tokens, inner = batch * seq, shape.HEADS * shape.HEAD_DIM
    x = normal(batch, seq, width)
    weights = normal(width, mlp), normal(width, mlp), normal(mlp, width)
    yield "SwiGLU MLP", layers, 18 * tokens * width * mlp, both_ways(swiglu), (x, x, *weights)
    square = normal(width, inner)
    flops = 6 * tokens * width * inner
    yield "projections of q, k, v and output", 4 * layers, flops, both_ways(matmul), (x, x, square)

    heads = [normal(batch, seq, shape.HEADS, shape.HEAD_DIM) for _ in range(4)]
    segments = jnp.ones((batch, seq), jnp.int32)
    for name, window in (("full", None), (f"window {shape.WINDOW}", shape.WINDOW)):

        def attend(q, k, v, window=window):
            return attention(q, k, v, window=window, segment_ids=segments)[0]

        seen = seq * (seq + 1) / 2
        if window:
            seen = window * (window + 1) / 2 + (seq - window) * window
        flops = 12 * batch * seen * inner  # two products forward, four backward
        yield f"attention, {name}", layers // 2, flops, both_ways(attend), tuple(heads)

    head, targets = normal(width, shape.VOCAB), jnp.zeros((batch, seq), jnp.int32)

    def loss(x, head):
        return summed_cross_entropy(x, head, targets, jnp.ones((batch, seq)))[0]

    flops = 6 * tokens * width * shape.VOCAB
    yield "head and loss", 1, flops, jax.value_and_grad(loss, (0, 1)), (x, head)

    adamw = optax.adamw(shape.LEARNING_RATE, shape.B1, shape.B2, weight_decay=shape.WEIGHT_DECAY)
    params = [normal(width, mlp) for _ in range(35)]  # as many as the model has
    yield "AdamW", 1, 0.0, adamw.update, (params, adamw.init(params), params)


def measured() -> dict:
    """Every part's seconds, the best of several calls, and those of the compiled training step."""
    sys.path.insert(0, str(PEERS))
    import hybridlm_worker
    import jax
    import measure

    options = argparse.Namespace(seed=0, warmup=3, steps=12)
    whole = hybridlm_worker.run(options)  # first: it tells the allocator before there are threads
    records = []
    for name, often, flops, function, arguments in parts():
        compiled = jax.jit(function)
        seconds = measure.best_seconds(
            lambda: jax.block_until_ready(compiled(*arguments)),  # noqa: B023 - called here
            budget=2.0,
        )
        records.append({"part": name, "often": often, "flops": flops, "seconds": seconds})
        train_cpu.say(f"{name}: {1e3 * seconds:.1f} ms")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": train_cpu.machine(),
        "records": records,
        "step_seconds": min(whole["cases"][train_cpu.ONE_DOCUMENT]["step_seconds"]),
        "matmul_flops": max(hybridlm_worker.measured_matmul_flops() for _ in range(3)),
        "versions": whole["versions"],
    }


def render(results: dict) -> str:
    """A table in Markdown."""
    step, peak = results["step_seconds"], results["matmul_flops"]
    lines = [
        "| part, forward and backward | in a step | ms each | ms a step | share | GFLOP/s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for r in results["records"]:
        each, rate = 1e3 * r["seconds"], r["flops"] / r["seconds"] / 1e9
        lines.append(
            f"| {r['part']} | {r['often']} | {each:.1f} | {each * r['often']:,.0f}"
            f" | {r['seconds'] * r['often'] / step:.0%} | {f'{rate:.0f}' if rate else ''} |"
        )
    rest = step - sum(r["seconds"] * r["often"] for r in results["records"])
    flops = sum(r["flops"] * r["often"] for r in results["records"])
    lines += [
        f"| all else | | | {1e3 * rest:,.0f} | {rest / step:.0%} | |",
        f"| the step | 1 | {1e3 * step:,.0f} | {1e3 * step:,.0f} | 100% | {flops / step / 1e9:.0f} |",
        "",
        f"- A product of two 1,024 x 1,024 matrices: {peak / 1e9:.0f} GFLOP/s. At that rate all"
        f" products of a step would take {flops / peak:.2f} s.",
        f"- {results['date']}, {results['machine']['cpu']}, {results['machine']['cores']} cores;"
        " the best of several calls; "
        + ", ".join(f"{n} {v}" for n, v in results["versions"].items())
        + ".",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = train_cpu.argument_parser(__doc__)
    options = parser.parse_args(arguments)
    if options.render:
        results = json.loads(options.render.read_text())
        train_cpu.write_between(BEGIN, END, render(results))
        return 0
    results = measured()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(render(results))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("step_parts", main))

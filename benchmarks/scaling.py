"""What splitting a step costs in communication, depth in compiling, and Python in a step.

- Bytes that devices send per token of a step, along each axis of the mesh (along `expert`, of a
  model whose feed-forwards are mixtures): on 1, 2, 4 and 8 simulated CPU devices, and by the TPU
  compiler for slices of chips that are not there (--chips, with the environment of `make aot`).
  Rows grow with the devices where they are split; the tokens of a device stay the same, or with
  `context` and `tensor` the whole step does.
- Seconds to compile a scanned model of 6 to 48 layers.
- Milliseconds a step of what Python does around the compiled step, on a model that takes no time.

Run:     python benchmarks/scaling.py --json benchmarks/scaling.json
Chips:   .venv-aot/bin/python benchmarks/scaling.py --chips v5e:2x4 v5e:8x8 v5e:16x16 v5p:8x16x16 \
             --json benchmarks/scaling.json
Table:   python benchmarks/scaling.py --render benchmarks/scaling.json      (into the README)
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import train_cpu

from hybridlm.errors import exit_code

BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"
DEVICES, DEPTHS = (1, 2, 4, 8), (6, 12, 24, 48)
RUNS = 5  # of what varies most
AXES = ("data", "fsdp", "tensor", "context", "expert")
ROWS = 2  # of a device
WIDTH = 256
SHAPE = {
    "model.width": str(WIDTH),
    "model.depth": "6",
    "model.mlp.hidden": "768",
    "model.vocab_size": "512",
    "model.mixers.swa.heads": "8",
    "model.mixers.swa.kv_heads": "8",
    "model.mixers.full.heads": "8",
    "model.mixers.full.kv_heads": "8",
    "model.mixers.rec.heads": "8",
    "data.seq_len": "1024",
    "mesh.data": "1",
}
# In the rows of `expert`: as many active parameters as the dense feed-forwards have.
MIXTURE = dict(kind="moe", experts=16, top_k=2, hidden=384)


# --- workers: one process each, as a process has one number of devices ------------------------------


def config_of(overrides: dict[str, str]):
    from hybridlm import config
    from hybridlm.train import setup

    return setup.resolve(config.load("configs/demo.py", list(overrides.items())))[0]


def split(axis: str, count: int) -> dict[str, str]:
    rows = ROWS * count if axis in ("data", "fsdp", "expert") else ROWS
    changes = {f"mesh.{axis}": str(count), "data.batch_size": str(rows)}
    if axis == "expert":
        changes["model.mlp"] = repr(MIXTURE)
    return SHAPE | changes


def sent(program, count: int, tokens: int) -> dict:
    """Bytes that all devices together send per token of a step, by kind of collective, of a
    `hybridlm.aot.hlo.ProgramCost`."""
    return {kind: c.sent * count / tokens for kind, c in program.collectives.items()}


def simulated(count: int) -> Iterator[dict]:
    import jax
    import numpy as np

    from hybridlm.aot import hlo
    from hybridlm.train import setup

    for axis in AXES if count > 1 else ("data",):
        made = config_of(split(axis, count))
        bytes_V = np.ones(made.model.vocab_size, np.float32)
        lowered = setup.lower_step(made, bytes_V, jax.devices())
        program = hlo.read(lowered.compile().as_text())
        by_kind = sent(program, count, made.tokens_per_step)
        yield {"kind": "simulated", "axis": axis, "devices": count, "sent": by_kind}


def on_chips(name: str) -> Iterator[dict]:
    import jax

    from hybridlm.aot import measure, topology

    jax.config.update("jax_platforms", "cpu")
    target = topology.find(name)
    count = len(target.devices)
    # Parameters are as wide as that; more chips hold copies.
    mesh = {"mesh.fsdp": str(min(count, WIDTH)), "mesh.data": str(max(1, count // WIDTH))}
    made = config_of(split("fsdp", count) | mesh)
    start = time.perf_counter()
    compiled = measure.compile_step(made, target)
    by_kind = sent(compiled.cost, count, made.tokens_per_step)
    yield {
        "kind": "chips",
        "axis": "fsdp",
        "topology": name,
        "devices": count,
        "sent": by_kind,
        "seconds": time.perf_counter() - start,
    }


def depth(layers: int) -> Iterator[dict]:
    import jax
    import numpy as np

    from hybridlm.train import setup

    made = config_of({"model.depth": str(layers)})
    start = time.perf_counter()
    lowered = setup.lower_step(made, np.ones(made.model.vocab_size, np.float32), jax.devices())
    traced = time.perf_counter()
    lowered.compile()
    seconds = {"trace": traced - start, "compile": time.perf_counter() - traced}
    yield {"kind": "depth", "layers": layers, **seconds}


def overhead(steps: int = 400) -> Iterator[dict]:
    """The loop's step, less the compiled step called with nothing around it."""
    import jax

    from hybridlm.runs import metrics
    from hybridlm.train import loop, setup

    tiny = {
        "model.width": "16",
        "model.depth": "3",
        "model.mlp.hidden": "16",
        "data.seq_len": "16",
        "data.batch_size": "2",
        "train.steps": str(steps),
        "train.log_every": "100",
        "train.eval_every": str(steps),
        "train.checkpoint_every": str(steps),
        "train.eval_sequences": "2",
        "train.tensorboard": "False",
        "data.bigram_baseline": "False",
    }
    made = config_of(tiny)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "run"
        loop.train(made, path)
        records = [r for r in metrics.read(path / metrics.FILE) if r["kind"] == "train"]
        trainer = setup.build(made, path, setup.read_data(made, path))
        batch, state = trainer.device_batch(next(trainer.batches())), trainer.state
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            state, values = trainer.train_step(state, batch)
            jax.block_until_ready(values)
            times.append(time.perf_counter() - start)
        trainer.checkpoints.close()
    whole, alone = records[-1]["step_seconds_p50"], sorted(times)[len(times) // 2]
    yield {"kind": "overhead", "step_ms": 1e3 * whole, "compiled_step_ms": 1e3 * alone}


WORKERS = {"simulated": simulated, "chips": on_chips, "depth": depth, "overhead": overhead}
WORDS = {"depth": "compile times", "overhead": "overhead"}


# --- the run, and its tables ---------------------------------------------------------------------------


def run(worker: str, *arguments: str, devices: int = 1) -> list[dict]:
    """What a worker yields, from a process of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, __file__, "--worker", worker, *arguments],
        env=os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for record in records:
        train_cpu.say(json.dumps(record, allow_nan=False))
    return records


def render(results: dict) -> str:
    """Tables in Markdown."""
    records = results["records"]
    of = {kind: [r for r in records if r["kind"] == kind] for kind in WORKERS}
    lines = [
        "| split along | devices | sent per token, KiB | by | counted |",
        "|---|--:|--:|---|---|",
    ]
    for record in of["simulated"] + of["chips"]:
        kinds = ", ".join(f"{k} {v / 1024:.1f}" for k, v in record["sent"].items() if v >= 51.2)
        where = record.get("topology", "simulated")
        total = sum(record["sent"].values()) / 1024
        lines.append(
            f"| `{record['axis']}` | {record['devices']} ({where}) | {total:,.1f} | {kinds or '-'} |"
            f" {record['date']} |"
        )
    lines += ["", "| layers | tracing, s | compiling, s |", "|--:|--:|--:|"]
    for record in of["depth"]:
        lines.append(f"| {record['layers']} | {record['trace']:.1f} | {record['compile']:.1f} |")
    if of["overhead"]:
        extra = sorted(r["step_ms"] - r["compiled_step_ms"] for r in of["overhead"])
        lines += [
            "",
            "Of a step of a tiny model in the loop, Python takes"
            f" {statistics.median(extra):.1f} ms (median of {len(extra)} runs, {extra[0]:.1f} to"
            f" {extra[-1]:.1f}).",
        ]
    machine, dates = results["machine"], results["dates"]
    measured = "; ".join(
        f"{', '.join(WORDS[kind] for kind in WORDS if dates.get(kind) == date)}: {date}"
        for date in sorted(set(dates.values()), reverse=True)
    )
    lines += ["", f"- {measured}; {machine['cpu']}, {machine['cores']} cores."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = train_cpu.argument_parser(__doc__)
    parser.add_argument("--chips", nargs="+", default=[], help="topologies, in place of the CPU's")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=("simulated", "depth", "overhead"),
        default=("simulated", "depth", "overhead"),
        help="what is measured on the CPU; times need a machine that does nothing else",
    )
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        name, *values = options.worker
        for record in WORKERS[name](*(int(v) if v.isdigit() else v for v in values)):
            print(json.dumps(record, allow_nan=False), flush=True)
        return 0
    if options.render:
        train_cpu.write_between(BEGIN, END, render(json.loads(options.render.read_text())))
        return 0
    if options.chips:
        records = [r for name in options.chips for r in run("chips", name)]
    else:
        tasks = [("simulated", n, n) for n in DEVICES] + [("depth", n, 1) for n in DEPTHS]
        tasks += RUNS * [("overhead", 400, 1)]
        records = []
        for kind, number, devices in tasks:
            if kind in options.kinds:
                records += run(kind, str(number), devices=devices)
    kinds = {r["kind"] for r in records}
    results = {"dates": {}, "machine": train_cpu.machine(), "records": []}
    if options.json and options.json.exists():
        before = json.loads(options.json.read_text())
        results["dates"] = before["dates"]
        results["records"] = [r for r in before["records"] if r["kind"] not in kinds]
    today = time.strftime("%Y-%m-%d")
    results["dates"] |= dict.fromkeys(sorted(kinds & set(WORDS)), today)
    results["records"] += [r if r["kind"] in WORDS else r | {"date": today} for r in records]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(render(results))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("scaling", main))

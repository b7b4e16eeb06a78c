"""What the checksums of a checkpoint cost: their share of a save of parameters and Adam's moments.

Saves float32 arrays with `hybridlm.runs.checkpoint` on this disk, then computes the same checksums alone.
Writes a table into benchmarks/README.md:

    python benchmarks/checkpoint_checksums.py --json benchmarks/checkpoint_checksums.json
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import train_cpu

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN = "<!-- checksums: written by checkpoint_checksums.py -->"
END = "<!-- checksums: end -->"
WIDTH = 2048  # of the square matrices that are saved


def seconds(run: Callable[[], object]) -> dict[str, float]:
    """Seconds of `run()`: `wall`, and `cpu` of all threads."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure(gigabytes: float, rounds: int) -> dict:
    """Each round is a save until it is on disk, and the checksums of the same arrays."""
    sys.path.insert(0, str(ROOT))
    import jax

    from hybridlm.runs import checksum
    from hybridlm.runs.checkpoint import Checkpoints

    count = max(round(gigabytes * 1e9 / (4 * WIDTH**2)), 1)
    draw = jax.jit(lambda key: jax.random.normal(key, (WIDTH, WIDTH)))
    state = {f"w{i}": draw(jax.random.key(i)) for i in range(count)}
    jax.block_until_ready(state)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(pathlib.Path(folder), keep=1)
        checksum.checksums(state)  # compiles
        for number in range(rounds):

            def save(step: int = number) -> None:
                checkpoints.save(step, {"params": state}, {"step": step})
                checkpoints.wait()

            records.append(
                {"save": seconds(save), "checksums": seconds(lambda: checksum.checksums(state))}
            )
            train_cpu.say(str(records[-1]))
        checkpoints.close()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": train_cpu.machine(),
        "load_at_start": train_cpu.load(),
        "bytes": count * 4 * WIDTH**2,
        "records": records,
    }


def render(results: dict) -> str:
    lines = ["| | save, s | checksums, s | share |", "|---|---:|---:|---:|"]
    for kind, title in (("wall", "wall"), ("cpu", "CPU")):
        save, sums = (
            statistics.median(r[part][kind] for r in results["records"])
            for part in ("save", "checksums")
        )
        lines.append(f"| {title} | {save:.2f} | {sums:.3f} | {sums / save:.1%} |")
    lines += [
        "",
        f"- {results['date']}, {results['machine']['cpu']}, {results['machine']['cores']} cores, load"
        f" {results['load_at_start']} at the start; {results['bytes'] / 1e9:.2f} GB in matrices of"
        f" {WIDTH} x {WIDTH}, medians of {len(results['records'])} rounds.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = train_cpu.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    options = parser.parse_args(arguments)
    if options.render:
        results = json.loads(options.render.read_text())
    else:
        results = measure(options.gigabytes, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    train_cpu.write_between(BEGIN, END, render(results))
    print(render(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the checksums of a checkpoint cost a save of parameters and Adam's moments.

Saves float32 arrays with `hybridlm.runs.checkpoint` on this disk, with and without checksums in
turn, and also computes the same checksums alone. Writes a table into benchmarks/README.md:

    python benchmarks/checkpoint_checksums.py --json benchmarks/checkpoint_checksums.json
"""

import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import train_cpu

from hybridlm.errors import exit_code

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN = "<!-- checksums: written by checkpoint_checksums.py -->"
END = "<!-- checksums: end -->"
WIDTH = 2048  # of the square matrices that are saved
KINDS = ("without", "with")


@contextlib.contextmanager
def measured(into: dict[str, float], name: str) -> Iterator[None]:
    """Puts the wall seconds of the context into `into[name]`."""
    start = time.perf_counter()
    yield
    into[name] = time.perf_counter() - start


def cpu_seconds(run: Callable[[], object]) -> float:
    """Of all threads of this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(gigabytes: float, rounds: int) -> dict:
    """Each round: a save without and one with checksums (their order alternates), and the checksums alone."""
    sys.path.insert(0, str(ROOT))
    import jax

    from hybridlm.runs import checksum, integrity
    from hybridlm.runs.checkpoint import Checkpoints

    count = max(round(gigabytes * 1e9 / (4 * WIDTH**2)), 1)
    draw = jax.jit(lambda key: jax.random.normal(key, (WIDTH, WIDTH)))
    state = {f"w{i}": draw(jax.random.key(i)) for i in range(count)}
    jax.block_until_ready(state)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(pathlib.Path(folder), keep=1)

        def save(kind: str) -> dict[str, float]:
            """Seconds until training may go on, and until the checkpoint is on disk; of CPU."""
            plain = mock.patch.object(integrity, "sealed", lambda metadata, state: metadata)
            figures, step = {}, (checkpoints.latest_step or 0) + 1
            with plain if kind == "without" else contextlib.nullcontext():

                def run() -> None:
                    with measured(figures, "wall"):
                        with measured(figures, "blocked"):
                            checkpoints.save(step, {"params": state}, {"step": step})
                        checkpoints.wait()

                figures["cpu"] = cpu_seconds(run)
            return figures

        for kind in KINDS:
            save(kind)  # compiles
        for number in range(rounds):
            record = {kind: save(kind) for kind in (KINDS if number % 2 else KINDS[::-1])}
            record["alone"] = {"cpu": cpu_seconds(lambda: checksum.checksums(state))}
            records.append(record)
            train_cpu.say(str(record))
        checkpoints.close()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": train_cpu.machine(),
        "load_at_start": train_cpu.load(),
        "bytes": count * 4 * WIDTH**2,
        "records": records,
    }


def render(results: dict) -> str:
    records = results["records"]
    lines = [
        "| | without, s | with, s | difference in a round, s | share |",
        "|---|---:|---:|---:|---:|",
    ]
    titles = {
        "blocked": "wall, until training goes on",
        "wall": "wall, until it is on disk",
        "cpu": "CPU, until it is on disk",
    }
    for figure, title in titles.items():
        plain, summed = (statistics.median(r[kind][figure] for r in records) for kind in KINDS)
        differences = [r["with"][figure] - r["without"][figure] for r in records]
        first, middle, third = statistics.quantiles(differences, n=4)
        lines.append(
            f"| {title} | {plain:.3f} | {summed:.3f} | {middle:+.3f} ({first:+.3f} to {third:+.3f})"
            f" | {middle / plain:+.1%} |"
        )
    alone = statistics.median(r["alone"]["cpu"] for r in records)
    cpu = statistics.median(r["without"]["cpu"] for r in records)
    lines += [
        f"| CPU, checksums alone | | {alone:.3f} | | {alone / cpu:.1%} |",
        "",
        f"- {results['date']}, {results['machine']['cpu']}, {results['machine']['cores']} cores, load"
        f" {results['load_at_start']} at the start; {results['bytes'] / 1e9:.2f} GB in matrices of"
        f" {WIDTH} x {WIDTH}; medians of {len(records)} rounds, of differences also the quartiles."
        " Shares are of a save without checksums.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = train_cpu.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=12)
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
    sys.exit(exit_code("checkpoint_checksums", main))

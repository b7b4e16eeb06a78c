"""Time of every chunked op, forward and backward, from 1k to 32k tokens on a CPU.

Windows and recurrences must grow linearly: at 32k tokens at most 9 times the time at 4k. Where
jax-linear-attention has the op in plain JAX it runs in the same process, call by call in turn.
Shape: batch 1, 4 heads of key and value size 64 (1,024 channels), float32, gradients to all inputs.

Run:     python benchmarks/mixers_cpu.py --json benchmarks/mixers_cpu.json
         (with --ops only these are measured; the others keep their records, also if it is stopped)
Table:   python benchmarks/mixers_cpu.py --render benchmarks/mixers_cpu.json   (into the README)
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

import train_cpu
from environments import Unavailable, variables

from hybridlm.errors import exit_code

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "<!-- mixers_cpu: begin -->", "<!-- mixers_cpu: end -->"
LENGTHS = (1024, 4096, 32768)
GROWTH = 9.0  # allowed from 4k to 32k tokens, which are 8 times as many


def run(options: argparse.Namespace) -> dict:
    """Every record of the worker, each with what it was measured with.

    The file of the options has each op's records as soon as all its lengths are measured.
    """
    library = next(x for x in train_cpu.LIBRARIES if x.key == "jla")
    python = train_cpu.interpreter(library, options.env)
    command = [python, str(HERE / "peers" / "ops_worker.py"), "--lengths", *map(str, LENGTHS)]
    command += ["--repeats", str(options.repeats)]
    if options.ops:
        command += ["--ops", *options.ops]
    if options.peer_up_to is not None:
        command += ["--peer_up_to", str(options.peer_up_to)]
    file, records, own, ops = options.json, [], [], []
    if file is not None and file.exists():
        records = json.loads(file.read_text())["records"]
    measured = {
        "machine": train_cpu.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "load_at_start": train_cpu.load(),
        "repeats": options.repeats,
    }
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables())
    for line in worker.stdout:
        record = json.loads(line)
        if "versions" in record:
            measured |= record
            continue
        own.append(record | measured)
        train_cpu.say(f"{record['op']}, {record['tokens']:,} tokens: {_pair(record)}")
        if len(own) == len(LENGTHS):
            records, own = replaced(records, own), []
            ops.append(record["op"])
            write(file, records)
    if worker.wait():
        raise Unavailable(f"the worker ended with {worker.returncode}")
    if not options.ops:  # all that there are
        records = [record for record in records if record["op"] in ops]
        write(file, records)
    return {"records": records}


def write(file: pathlib.Path | None, records: list[dict]) -> None:
    """Replaces the file by one with these records; None writes nothing."""
    if file is not None:
        new = file.with_name(f".{file.name}.new")
        new.write_text(json.dumps({"records": records}, indent=1, allow_nan=False) + "\n")
        new.replace(file)


def replaced(records: list[dict], new: list[dict]) -> list[dict]:
    """The records with those of one op replaced, at their place, or with the new ones at the end."""
    op = new[0]["op"]
    ops = dict.fromkeys([*(record["op"] for record in records), op])
    by_op = {name: [record for record in records if record["op"] == name] for name in ops}
    return [record for own in (by_op | {op: new}).values() for record in own]


def _pair(record: dict) -> str:
    theirs = record["peer"]
    peer = f", peer {1e3 * theirs:,.1f} ms" if theirs else record.get("peer_failed", "")
    return f"{1e3 * record['ours']:,.1f} ms{peer}"


def rows(results: dict) -> list[dict]:
    """By op: seconds at each length, growth from 4k to 32k, ratio to the peer at each length.

    Raises:
      Unavailable: where an op lacks a length.
    """
    table: dict[str, dict] = {}
    for record in results["records"]:
        empty = {"op": record["op"], "seconds": {}, "cpu": {}, "ratio": {}}
        row = table.setdefault(record["op"], empty)
        row["seconds"][record["tokens"]] = record["ours"]
        row["cpu"][record["tokens"]] = record.get("ours_cpu")
        if record["peer"]:
            row["ratio"][record["tokens"]] = record["peer"] / record["ours"]
        elif "peer_failed" in record:
            row["failed"] = record["peer_failed"]
        elif record.get("peer_skipped"):
            row["skipped"] = True
    for row in table.values():
        missing = [f"{n:,}" for n in LENGTHS if n not in row["seconds"]]
        if missing:
            raise Unavailable(
                f"{row['op']} has no record at {' and '.join(missing)} tokens:"
                f" measure it again with --ops {shlex.quote(row['op'])}"
            )
        row["growth"] = row["seconds"][LENGTHS[2]] / row["seconds"][LENGTHS[1]]
        few, many = row["cpu"][LENGTHS[1]], row["cpu"][LENGTHS[2]]
        row["cpu_growth"] = many / few if few and many else None
    return list(table.values())


def render(results: dict) -> str:
    """A table in Markdown, and what it was measured with."""
    lengths = " | ".join(f"{n // 1024}k, ms" for n in LENGTHS)
    lines = [
        f"| op, forward + backward | {lengths} | 32k / 4k | times as fast as the peer, 1k / 4k / 32k |",
        "|---|" + "---:|" * (len(LENGTHS) + 2),
    ]
    for row in rows(results):
        times = " | ".join(f"{1e3 * row['seconds'][n]:,.1f}" for n in LENGTHS)
        ratios = " / ".join(f"{row['ratio'][n]:.2f}" if n in row["ratio"] else "-" for n in LENGTHS)
        if not row["ratio"]:
            ratios = (
                "it fails" if "failed" in row else "not run" if "skipped" in row else "it has none"
            )
        growth = f"{row['growth']:.1f}"
        if row["cpu_growth"]:
            growth += f" (CPU {row['cpu_growth']:.1f})"
        lines.append(f"| `{row['op']}` | {times} | {growth} | {ratios} |")
    lines.append("")
    runs: dict[str, list[str]] = {}
    for record in results["records"]:
        runs.setdefault(_measured_with(record), []).append(record["op"])
    for measured, ops in runs.items():
        which = ", ".join(f"`{op}`" for op in dict.fromkeys(ops)) + ": " if len(runs) > 1 else ""
        lines.append(f"- {which}{measured}")
    return "\n".join(lines)


def _measured_with(record: dict) -> str:
    machine = record["machine"]
    found = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"{record['date']}, {machine['cpu']}, {machine['cores']} cores, load"
        f" {record['load_at_start']} at the start; best of {record['repeats']}; {found}."
    )


def failures(results: dict) -> list[str]:
    """Sentences on what misses the bars: linear growth (of CPU time, where it was measured: other
    programs lengthen it less), and no slower than the peer."""
    found = []
    for row in rows(results):
        if (growth := row["cpu_growth"] or row["growth"]) > GROWTH:
            found.append(f"{row['op']}: 32k tokens take {growth:.1f} times as long as 4k")
        for tokens, ratio in row["ratio"].items():
            if ratio < 1:
                found.append(f"{row['op']}: {ratio:.2f} times as fast as the peer at {tokens:,}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = train_cpu.argument_parser(__doc__)
    parser.add_argument("--env", type=pathlib.Path, metavar="DIR", help="jax-linear-attention's")
    parser.add_argument("--ops", nargs="+", help="only these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peer_up_to",
        type=int,
        metavar="TOKENS",
        help="run the peer on rows up to this length only",
    )
    options = parser.parse_args(arguments)
    try:
        if options.render:
            train_cpu.write_between(BEGIN, END, render(json.loads(options.render.read_text())))
            return 0
        results = run(options)
        print(render(results))
        for failure in failures(results):
            train_cpu.say(f"misses its bar: {failure}")
    except Unavailable as error:
        train_cpu.say(f"stopped: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("mixers_cpu", main))

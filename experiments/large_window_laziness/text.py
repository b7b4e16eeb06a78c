"""The matrix of windows, positions and seeds on real text, for one accelerator.

    python -m experiments.large_window_laziness.text --workdir runs/laziness-text
    python -m experiments.large_window_laziness.text --workdir runs/laziness-text --table
    python -m experiments.large_window_laziness.text --workdir runs/... --tokens data/tokens/books \\
        --tokenizer hf --tokenizer_path data/tokenizer.json

Models have 8 layers of width 512 that alternate efficient and full attention, and 4,096 tokens of
context. They train on the bundled State of the Union addresses in bytes, or on a folder written by
`hybridlm tokenize`. Each run is one of `hybridlm train` with live probes of the heads: the same
command resumes it, and `hybridlm report|probe|eval` read it. `--table` writes one line per
evaluation: held-out loss, loss at the last positions, and the retrieval heads' score and entropy.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.large_window_laziness import tables
from hybridlm.config import Config, read
from hybridlm.errors import UserError
from hybridlm.runs import metrics
from hybridlm.settings import json_text

WINDOWS = (16, 128, 512, 2048, None)  # None: full attention instead of a window
POSITIONS = ("rope", "nope")
SEEDS = 3
TOP_K = 4
COLUMNS = ("run", "step", "loss", "bits_per_byte", "last_positions_loss", "mass", "copy", "entropy")


def name(window: int | None, positions: str, seed: int) -> str:
    """The name of a run and of its folder."""
    return f"{'full' if window is None else f'w{window}'}-{positions}-{seed}"


def settings(
    window: int | None, positions: str, seed: int, steps: int, data: dict[str, Any], smoke: bool
) -> Config:
    """The config of one run.

    Args:
      data: `sources` and `tokenizer`.
      smoke: whether to shrink the run to seconds on a CPU.
    """
    heads, width, depth = (2, 32, 2) if smoke else (8, 512, 8)
    seq_len, batch = (128, 4) if smoke else (4096, 16)
    attention = dict(kind="attention", heads=heads, rope=dict(theta=100_000.0))
    full = dict(attention, rope=None) if positions == "nope" else attention
    every = max(steps // 20, 1)
    return read(
        {
            "seed": seed,
            "model": {
                "width": width,
                "depth": depth,
                "pattern": "local full",
                "mixers": {"local": dict(attention, window=window), "full": full},
                "mlp": {"hidden": 8 * width // 3 // 16 * 16},
            },
            "data": {**data, "seq_len": seq_len, "batch_size": batch},
            "optimizer": {
                "lr": 1e-3,
                "schedule": "wsd",
                "warmup_steps": steps // 20,
                "decay_steps": max(steps // 10, 1),
                "weight_decay": 0.1,
            },
            "train": {
                "steps": steps,
                "log_every": every,
                "eval_every": every,
                "eval_sequences": 64,
                "checkpoint_every": every,
                "keep_every": every,
                "tensorboard": False,
            },
            "probes": {"which": ["heads"], "interval": every, "samples": 16},
        }
    )


def table(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """One row per evaluation of each run; the heads are those with the highest final score."""
    rows = []
    for folder in sorted(path.parent for path in workdir.glob(f"*/{metrics.FILE}")):
        evals = [r for r in metrics.read(folder / metrics.FILE) if r["kind"] == "eval"]
        probed = metrics.read(folder / "probes.jsonl")
        scores = {
            (r["step"], r["layer"], r["head"]): r for r in probed if r["kind"] == "retrieval_heads"
        }
        entropies = {
            (r["step"], r["layer"], r["head"]): r["entropy"]
            for r in probed
            if r["kind"] == "entropy"
        }
        last = max((step for step, *_ in scores), default=0)
        final = sorted((key for key in scores if key[0] == last), key=lambda k: -scores[k]["mass"])
        heads = [key[1:] for key in final[:TOP_K]]
        for record in evals:
            step = record["step"]
            seen = [(step, *head) for head in heads if (step, *head) in scores]
            rows.append(
                {
                    "run": folder.name,
                    "step": step,
                    "loss": record["loss"],
                    "bits_per_byte": record["bits_per_byte"],
                    "last_positions_loss": record["by_position"][-1]["loss"],
                    **{k: _mean([scores[key][k] for key in seen]) for k in ("mass", "copy")},
                    "entropy": _mean([entropies[key] for key in seen if key in entropies]),
                }
            )
    return rows


def _mean(values: Sequence[float]) -> float | str:
    return float(np.mean(values)) if len(values) else ""


def _runs(arguments: argparse.Namespace) -> Iterator[tuple[str, Config]]:
    tokenizer = {"kind": arguments.tokenizer, "path": arguments.tokenizer_path}
    source = {"kind": "jsonl", "path": "data/corpora/state_of_the_union.jsonl.gz"}
    if arguments.tokens:
        source = {"kind": "tokens", "path": str(arguments.tokens)}
    data = {"sources": {"text": source}, "tokenizer": tokenizer}
    steps = arguments.steps or (8 if arguments.smoke else 5000)
    for seed, positions, window in itertools.product(range(arguments.seeds), POSITIONS, WINDOWS):
        run = name(window, positions, seed)
        if not arguments.only or run in arguments.only.split(","):
            yield run, settings(window, positions, seed, steps, data, arguments.smoke)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="text", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs")
    parser.add_argument("--tokens", type=pathlib.Path, help="folder of token shards")
    parser.add_argument("--tokenizer", default="bytes", help="bytes, hf or sentencepiece")
    parser.add_argument("--tokenizer_path", help="file of an hf or sentencepiece tokenizer")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, help="5000 by default")
    parser.add_argument("--only", default="", help="runs, separated by commas, e.g. w16-nope-0")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny models: seconds per run on a CPU"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what each run would cost")
    parser.add_argument(
        "--table", action="store_true", help="write WORKDIR/text.tsv, train nothing"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.table:
            rows = table(arguments.workdir)
            tables.write(arguments.workdir / "text.tsv", COLUMNS, rows)
            print(f"{len(rows)} rows in {arguments.workdir / 'text.tsv'}")
            return 0
        for run, config in _runs(arguments):
            if arguments.dry_run:
                from hybridlm.analysis.cost import cost

                print(json_text.dumps({"run": run, **cost(config)}))
                continue
            from hybridlm.commands.full_run import full_run

            print(f"\n== {run}", flush=True)
            code = full_run(config, arguments.workdir / run)
            if code:
                return code
    except UserError as error:
        print(f"text: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

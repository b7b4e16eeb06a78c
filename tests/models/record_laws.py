"""Runs every law on every small mixer and writes which variants passed: docs/laws.json.

Run:  python tests/models/record_laws.py [--seeds 2] [--variants 1] [--kinds nha gsa]
          [--names nha0] [--laws causal finite] [--missing] [--processes 2]

A variant passes a law if it does on all seeds, a kind if all its recorded variants do. What does not
run keeps its record. `docs/mixers.md` shows the record; run this after a change of a mixer or an op.
"""

import argparse
import collections
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import sys
import time
import traceback

os.environ["JAX_PLATFORMS"] = "cpu"
# As in the tests, no LLVM optimisation of programs that run once. Law 6 needs two devices.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
)

HERE = pathlib.Path(__file__).resolve().parent
RECORD = HERE.parents[1] / "docs" / "laws.json"
BFLOAT16, SHARDED = "chunked = reference, bfloat16", "sharded = single device"
sys.path[:0] = [str(HERE), str(HERE.parents[1])]


def sharded(subject, rng) -> None:
    """Law 6, over the batch on two devices."""
    import jax

    from kernels_pallas import testing

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    ids = testing.draw_segment_ids(rng, 4, 70)
    testing.check_sharded(subject, rng, mesh, 4, 70, segment_ids=ids, with_state=False)


def bfloat16(subject, rng) -> None:
    """Law 1 on inputs of bfloat16."""
    from kernels_pallas import testing

    ids = testing.draw_segment_ids(rng, 2, 70, padding=0.1)
    testing.check_bfloat16(subject, rng, 2, 70, ids)


def all_laws() -> dict:
    from kernels_pallas.testing import LAWS

    return {**LAWS, BFLOAT16: bfloat16, SHARDED: sharded}


def hold(name: str, laws: list[str], seeds: int) -> dict[str, bool]:
    """Law -> whether the variant passed it on every seed."""
    import jax
    from mixer_subjects import seeded

    passed = {}
    for law in laws:
        check = all_laws()[law]
        passed[law] = True
        for seed in range(seeds):
            try:
                with jax.enable_x64(True):
                    check(*seeded(name, [seed, len(name)]))
            except AssertionError as error:
                print(f"{name}, {law}, seed {seed}: {error}", flush=True)
                passed[law] = False
            except Exception:
                print(f"{name}, {law}, seed {seed}: {traceback.format_exc(limit=3)}", flush=True)
                passed[law] = False
        jax.clear_caches()
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", type=int, help="maximum variants of a kind; default: all")
    parser.add_argument("--kinds", nargs="+", help="only these")
    parser.add_argument("--names", nargs="+", metavar="VARIANT", help="only these of small.MIXERS")
    parser.add_argument("--laws", nargs="+", metavar="LAW", help="only these")
    parser.add_argument(
        "--missing", action="store_true", help="only variants without a record of every law"
    )
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    import small

    laws = options.laws or [*all_laws()]
    if unknown := set(laws) - set(all_laws()):
        parser.error(f"unknown law {min(unknown)!r}: there are {', '.join(all_laws())}")
    if unknown := set(options.names or ()) - set(small.MIXERS):
        parser.error(f"unknown variant {min(unknown)!r}: there are {', '.join(small.MIXERS)}")
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    passed = collections.defaultdict(lambda: collections.defaultdict(dict))
    for kind, variants in record.get("passed", {}).items():
        passed[kind].update(variants)
    kinds = {name: mixer["kind"] for name, mixer in small.MIXERS.items()}
    chosen = [
        name
        for name, kind in kinds.items()
        if (not options.kinds or kind in options.kinds)
        and (not options.names or name in options.names)
        and not (options.missing and set(laws) <= set(passed[kind][name]))
    ]
    if options.variants:
        of_kind = {k: [n for n in chosen if kinds[n] == k] for k in set(kinds.values())}
        chosen = [n for n in chosen if n in of_kind[kinds[n]][: options.variants]]
    seeds = min(options.seeds, record.get("seeds", options.seeds))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        tasks = {pool.submit(hold, name, laws, options.seeds): name for name in chosen}
        for task in concurrent.futures.as_completed(tasks):
            name, result = tasks[task], task.result()
            passed[kinds[name]][name].update(result)
            print(f"{name}: {sum(result.values())} of {len(result)} laws", flush=True)
            write(passed, seeds)
    recorded = [laws for variants in passed.values() for laws in variants.values()]
    return 0 if all(all(laws.values()) for laws in recorded) else 1


def write(passed: dict[str, dict[str, dict[str, bool]]], seeds: int) -> None:
    """Writes the record so far, so that an interrupted run keeps its results.

    `passed` is by kind, variant and law. Variants that `small.MIXERS` no longer has are left out.
    """
    import jax
    import small

    kinds = sorted({mixer["kind"] for mixer in small.MIXERS.values()})
    there = {k: [n for n, mixer in small.MIXERS.items() if mixer["kind"] == k] for k in kinds}
    laws = [*all_laws()]
    record = dict(
        date=time.strftime("%Y-%m-%d"),
        jax=jax.__version__,
        seeds=seeds,
        laws=laws,
        variants=there,
        passed={
            kind: {
                name: {law: passed[kind][name][law] for law in laws if law in passed[kind][name]}
                for name in names
                if passed[kind][name]
            }
            for kind, names in there.items()
        },
    )
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

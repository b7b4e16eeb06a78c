"""Compiles the training steps of hybridlm and MaxText for the same TPU slices; reads both alike.

No chip is needed: libtpu compiles for slices that are not there. Each step compiles in a process of its
own, one at a time; MaxText's in an environment that this script makes. Both have the sizes of
`peers/step_recipe.py`, float32 state, bfloat16 compute, AdamW with clipping, full rematerialisation,
segment ids and FSDP over all chips; GROWTH has one step on more chips, and on longer rows whose time is
split over chips. Results are kept as they come, so a stopped command goes on.

Run with the environment of `make aot`:
  .venv-aot/bin/python benchmarks/compile_peers.py [--only dense,llama7b] [--flags best,default]
Table: .venv-aot/bin/python benchmarks/compile_peers.py --render      (into the README)
"""

import argparse
import importlib.metadata
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import environments
import train_cpu
from peers.step_recipe import SHAPES, Shape

from hybridlm.aot import hlo, topology

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "compile_peers.json"
README = HERE / "README.md"
BEGIN, END = "<!-- compile_peers: begin -->", "<!-- compile_peers: end -->"
MAXTEXT = "maxtext==0.2.5"
# What its training step imports; its own requirements pin another jax and libtpu.
IMPORTS = (
    "pydantic omegaconf pathwaysutils jinja2 qwix aqtp tokamax huggingface_hub transformers drjax"
    " pillow tiktoken sentencepiece sympy google-cloud-storage opentelemetry-api opentelemetry-sdk"
    " tensorboardX pyyaml"
).split()
SHARED = "jax jaxlib libtpu flax optax orbax-checkpoint grain ml-collections".split()

# Parameters are gathered before a product, not in a loop around it.
GATHERED = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
FLAGS = {"best": GATHERED, "default": {}}


class Case(NamedTuple):
    """A step on a slice.

    Attributes:
      shape: a key of `SHAPES`. slice_name, maxtext_slice: our name and MaxText's.
      length: tokens of a row, in place of the shape's; a chip's tokens of a step stay as many.
      context: chips that split the time of a row; the others split rows and parameters.
    """

    shape: str
    slice_name: str
    maxtext_slice: str
    chips: int
    length: int | None = None
    context: int = 1

    def sizes(self) -> Shape:
        """The shape with this case's rows."""
        shape = SHAPES[self.shape]
        if self.length is None:
            return shape
        rows = self.chips * TOKENS_OF_A_CHIP // self.length
        return shape._replace(length=self.length, rows=rows)


CASES = {
    "dense": Case("dense", "v5e:4x4", "v5e-16", 16),
    "llama7b": Case("llama7b", "v5p:4x4x4", "v5p-128", 64),
    "delta v5p": Case("delta", "v5p:2x2x4", "v5p-32", 16),
    "delta v6e": Case("delta", "v6e:4x4", "v6e-16", 16),
}
TOKENS_OF_A_CHIP = 16_384  # of a step, in GROWTH
CHIPS_64 = ("v5p:4x4x4", "v5p-128", 64)
GROWTH = {
    "dense on 8": Case("dense", "v5p:2x2x2", "v5p-16", 8, 4096),
    "dense on 64": Case("dense", *CHIPS_64, 4096),
    "dense on 512": Case("dense", "v5p:8x8x8", "v5p-1024", 512, 4096),
    "dense on 2048": Case("dense", "v5p:8x16x16", "v5p-4096", 2048, 4096),
    "dense 4k by 8": Case("dense", *CHIPS_64, 4096, context=8),
    "dense 32k by 8": Case("dense", *CHIPS_64, 32_768, context=8),
    "dense 128k by 8": Case("dense", *CHIPS_64, 131_072, context=8),
    "delta 32k by 8": Case("delta", *CHIPS_64, 32_768, context=8),
    "delta 128k by 8": Case("delta", *CHIPS_64, 131_072, context=8),
}
ALL = CASES | GROWTH
# Our figures are to be at most so many times MaxText's; HBM bytes where it has no kernel, DELTA_BAR.
BARS = {"hbm_GB": 1.0, "sent_GB": 1.0, "temporaries_GiB": 1.0, "cpu_s": 0.7}
DELTA_BAR = 0.4
OURS = {"best": {"train.reduce_dtype": "bfloat16"}, "default": {}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(ALL), help="cases, with commas")
    parser.add_argument("--flags", default="best", help="best, default or both, with a comma")
    parser.add_argument("--sides", default="hybridlm,maxtext")
    parser.add_argument("--again", action="store_true", help="also what is in the results")
    parser.add_argument(
        "--keep", type=pathlib.Path, help="a folder for the compiled programs, as text"
    )
    parser.add_argument("--render", action="store_true", help="write the table into the README")
    given = parser.parse_args()
    if given.render:
        train_cpu.write_between(BEGIN, END, "\n".join(rows()), README)
        return 0
    for case in given.only.split(","):
        for flags in given.flags.split(","):
            for side in given.sides.split(","):
                if given.again or f"{case}, {side}, {flags}" not in kept():
                    measure(case, side, flags, given.keep)
    return 0


def kept() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def measure(case: str, side: str, flags: str, keep: pathlib.Path | None = None) -> None:
    """Compiles one step and adds its figures to the results; its program goes into `keep`."""
    env, asked = environments.variables(), request(case, side, flags)
    with tempfile.TemporaryDirectory() as folder:
        if side == "hybridlm":
            command = [sys.executable, str(HERE / "peers" / "our_step.py")]
            env["PYTHONPATH"] = str(HERE.parent)  # this folder's code, whatever is installed
        else:
            command = [maxtext_python(), str(HERE / "peers" / "maxtext_step.py")]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, json.dumps(asked, allow_nan=False), folder],
            capture_output=True,
            text=True,
            env=env,
        )
        if done.returncode:
            found = {"failed": environments.last_line(done.stderr)[:400]}
        else:
            target = ALL[case].slice_name
            found = figures(pathlib.Path(folder), target) | {"request": asked}
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                name = f"{case} {side} {flags}.txt".replace(" ", "-")
                shutil.copy(pathlib.Path(folder) / "program.txt", keep / name)
    found["wall_s"] = time.perf_counter() - began
    found["date"] = time.strftime("%Y-%m-%d")
    found["versions"] = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    RESULTS.write_text(
        json.dumps(kept() | {f"{case}, {side}, {flags}": found}, indent=1, allow_nan=False) + "\n"
    )
    print(case, side, flags, found.get("failed") or f"{found['hbm_GB']:.1f} GB of HBM traffic")


def request(name: str, side: str, flags: str) -> dict:
    """What the program of one side in `peers/` is asked to compile."""
    case = ALL[name]
    if side == "maxtext":
        asked = {"settings": maxtext_settings(case), "dense_mlp": case.sizes().delta}
        return asked | {"options": FLAGS[flags]}
    overrides = OURS[flags] | {
        f"train.compiler_options.tpu.{k}": v for k, v in FLAGS[flags].items()
    }
    if case.length is not None:
        sizes = case.sizes()
        overrides |= {"data.seq_len": str(sizes.length), "data.batch_size": str(sizes.rows)}
        overrides["mesh.context"] = str(case.context)
    return {"shape": case.shape, "topology": case.slice_name, "overrides": overrides}


def figures(folder: pathlib.Path, slice_name: str) -> dict:
    """What one reader finds in a compiled program, and the compiler's own sizes."""
    sizes = json.loads((folder / "sizes.json").read_text())
    cost = hlo.read((folder / "program.txt").read_text())
    chip = topology.find(slice_name)
    sent = {kind: c.sent for kind, c in cost.collectives.items()}
    return {
        "TFLOP": cost.flops / 1e12,
        "hbm_GB": cost.hbm_bytes / 1e9,
        "sent_GB": sum(sent.values()) / 1e9,
        "sent_by_kind_GB": {kind: value / 1e9 for kind, value in sent.items()},
        "temporaries_GiB": sizes["temp_size"] / 2**30,
        "cpu_s": sizes["cpu_s"],
        "parameters": sizes["parameters"],
        "unknown_loops": cost.unknown_loops,
        "seconds_at_least": {
            "compute": cost.flops / chip.flops,
            "hbm": cost.hbm_bytes / chip.bandwidth,
            "interconnect": sum(sent.values()) / chip.interconnect,
        },
    }


def maxtext_settings(case: Case) -> dict:
    """MaxText's words for a case."""
    s, chips = case.sizes(), case.chips
    settings = dict(
        run_name="compile",
        compile_topology=case.maxtext_slice,
        compile_topology_num_slices=1,
        decoder_block="qwen3_next" if s.delta else "llama2",
        base_emb_dim=s.width,
        base_num_query_heads=s.heads,
        base_num_kv_heads=s.kv_heads,
        head_dim=s.head_dim,
        base_mlp_dim=s.mlp,
        base_num_decoder_layers=s.depth,
        vocab_size=s.vocab,
        max_target_length=s.length,
        # Below 1 where several chips split a row.
        per_device_batch_size=s.rows // chips or s.rows / chips,
        ici_fsdp_parallelism=chips // case.context,
        remat_policy="full",
        dtype="bfloat16",
        weight_dtype="float32",
        attention="flash",
        logits_via_embedding=False,
        dataset_type="synthetic",
        enable_checkpointing=False,
        skip_jax_distributed_system=True,
    )
    if case.context > 1:
        settings["ici_context_parallelism"] = case.context
        # A side of a slice may have fewer chips than a row; ours always allows it.
        settings["allow_split_physical_axes"] = True
        # It evens the work of full attention out; the recurrent layers need time in its order.
        settings["context_parallel_load_balance"] = not s.delta
    if s.delta:
        settings |= dict(
            inhomogeneous_layer_cycle_interval=4,
            base_moe_mlp_dim=s.mlp,
            num_experts=2,
            num_experts_per_tok=1,
            gdn_num_key_heads=s.heads,
            gdn_num_value_heads=s.heads,
            gdn_key_head_dim=s.head_dim,
            gdn_value_head_dim=s.head_dim,
        )
    return settings


def maxtext_python() -> str:
    """The Python of MaxText's environment, with this environment's jax and libtpu."""
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in SHARED]
    requirements = [[*pins, *IMPORTS], ["--no-deps", MAXTEXT]]
    return environments.make(HERE / ".envs" / "maxtext", sys.executable, requirements)


# --- the table ------------------------------------------------------------------------------------


def rows() -> Iterator[str]:
    yield (
        "| step | library | flags | TFLOP | HBM, GB | sent, GB | temporaries, GiB |"
        " compile, CPU s | step at least, s (bound) |"
    )
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|"
    for name, found in kept().items():
        cells = name.split(", ")
        if cells[0] not in CASES:
            continue
        if "failed" in found:
            yield f"| {' | '.join(cells)} | does not compile: {found['failed']} ||||||"
            continue
        bound, seconds = max(found["seconds_at_least"].items(), key=lambda item: item[1])
        yield f"| {' | '.join([*cells, *figure_cells(found), f'{seconds:.3f} ({bound})'])} |"
    yield ""
    yield from ratios()
    yield ""
    yield from growth()


def figure_cells(found: dict) -> list[str]:
    cells = [f"{found[key]:.1f}" for key in ("TFLOP", "hbm_GB")]
    cells += [f"{found['sent_GB']:.2f}", f"{found['temporaries_GiB']:.2f}"]
    return [*cells, f"{found['cpu_s']:.0f}"]


def ratios() -> Iterator[str]:
    """Our figures as shares of MaxText's, at the best flags of both, and the bars that they miss."""
    yield (
        "| step, ours / MaxText's | HBM | sent | temporaries | compile, CPU s |"
        " our step is bound by its products |"
    )
    yield "|---|--:|--:|--:|--:|---|"
    for case, (shape, *_) in CASES.items():
        ours, theirs = (kept().get(f"{case}, {side}, best") for side in ("hybridlm", "maxtext"))
        if ours is None or theirs is None or "failed" in ours | theirs:
            continue
        bars = BARS | ({"hbm_GB": DELTA_BAR} if SHAPES[shape].delta else {})
        cells = [case]
        for name, bar in bars.items():
            ratio = ours[name] / theirs[name]
            cells.append(f"{ratio:.3f}" + f" (bar {bar})" * (ratio > bar))
        seconds = ours["seconds_at_least"]
        cells.append("yes" if max(seconds, key=seconds.get) == "compute" else "no (bar)")
        yield f"| {' | '.join(cells)} |"


def growth() -> Iterator[str]:
    """One step on more chips, and on longer rows."""
    yield (
        "| shape | layers | chips | tokens of a row | chips of a row | library | flags | TFLOP |"
        " HBM, GB | sent, GB | temporaries, GiB | compile, CPU s |"
    )
    yield "|---|--:|--:|--:|--:|---|---|--:|--:|--:|--:|--:|"
    results = kept()
    for name, case in GROWTH.items():
        sizes = case.sizes()
        about = [case.shape, sizes.depth, f"{case.chips:,}", f"{sizes.length:,}", case.context]
        for side, flags in itertools.product(("hybridlm", "maxtext"), FLAGS):
            if (found := results.get(f"{name}, {side}, {flags}")) is None:
                continue
            failed = found.get("failed")
            cells = [f"does not compile: {failed}", *[""] * 4] if failed else figure_cells(found)
            yield f"| {' | '.join(map(str, [*about, side, flags, *cells]))} |"


if __name__ == "__main__":
    sys.exit(main())

"""Compiles hybridlm's training step for a TPU slice, and keeps the program.

Run: python our_step.py '{"shape": "dense", "topology": "v5e:4x4", "overrides": {...}}' OUT
Writes OUT/program.txt (the compiled program), OUT/sizes.json (bytes of the compiler, seconds).
"""

import json
import math
import os
import pathlib
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from hybridlm import config as configs
from hybridlm.aot import measure, topology
from hybridlm.train import setup


def main() -> None:
    case, out = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
    recipe = pathlib.Path(__file__).with_name("step_recipe.py")
    made = configs.load(f"{recipe}:{case['shape']}", list(case["overrides"].items()))
    config = setup.resolve(made)[0]
    target = topology.find(case["topology"])
    cpu = time.process_time()
    compiled = measure.compile_step(config, target)
    cpu = time.process_time() - cpu
    if not isinstance(compiled, measure.Compiled):
        raise SystemExit(compiled.reason)
    sizes = compiled.step.memory_analysis()
    out.mkdir(parents=True, exist_ok=True)
    (out / "program.txt").write_text(compiled.step.as_text())
    kinds = "argument_size output_size alias_size temp_size generated_code_size".split()
    found = {kind: getattr(sizes, f"{kind}_in_bytes") for kind in kinds}
    found |= {"trace_s": compiled.lower_seconds, "compile_s": compiled.compile_seconds}
    params = jax.tree.leaves(compiled.lowered.abstract["params"])
    found |= {"cpu_s": cpu, "parameters": sum(math.prod(x.shape) for x in params)}
    (out / "sizes.json").write_text(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()

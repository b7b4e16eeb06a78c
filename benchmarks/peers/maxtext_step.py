"""Compiles MaxText's training step for a TPU slice, in its own environment, and keeps the program.

Run: python maxtext_step.py '{"settings": {...}, "dense_mlp": bool, "options": {...}}' OUT
Writes OUT/program.txt (the compiled program), OUT/sizes.json (bytes of the compiler, seconds).
"""

import json
import os
import pathlib
import resource
import sys
import time

# Without these, libtpu searches for a chip, a metadata server and other processes.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import jax
from flax.linen import logical_axis_rules
from maxtext.configs import pyconfig
from maxtext.trainers.pre_train import train, train_compile
from maxtext.utils import maxtext_utils, sharding


def main() -> None:
    case, out = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    if case["dense_mlp"]:
        use_dense_mlp()
    words = [f"{key}={value}" for key, value in case["settings"].items()]
    base = pathlib.Path(pyconfig.__file__).parent / "base.yml"
    config = pyconfig.initialize(["", str(base), *words])
    mesh = train_compile.get_topology_mesh(config)
    arguments, keywords, state_shardings, _, model = train_compile.get_shaped_inputs(mesh, config)
    param_shardings, state_shardings = sharding.maybe_update_params_sharding_with_opt(
        config, state_shardings
    )
    step, inputs, outputs, static, donated = maxtext_utils.get_functional_train_with_signature(
        train.train_step,
        sharding.get_input_data_sharding(config, mesh),
        state_shardings,
        model,
        config,
        param_shardings,
    )
    began, cpu = time.perf_counter(), cpu_seconds()
    with jax.set_mesh(mesh), logical_axis_rules(config.logical_axis_rules):
        jitted = jax.jit(
            step,
            in_shardings=inputs,
            out_shardings=outputs,
            static_argnums=static,
            donate_argnums=donated,
        )
        lowered = jitted.lower(*arguments, **keywords)
    traced = time.perf_counter()
    compiled = lowered.compile(compiler_options=case["options"])
    sizes = compiled.memory_analysis()
    out.mkdir(parents=True, exist_ok=True)
    (out / "program.txt").write_text(compiled.as_text())
    kinds = "argument_size output_size alias_size temp_size generated_code_size".split()
    found = {kind: getattr(sizes, f"{kind}_in_bytes") for kind in kinds}
    found |= {"trace_s": traced - began, "compile_s": time.perf_counter() - traced}
    found["cpu_s"] = cpu_seconds() - cpu
    found["parameters"] = sum(x.size for x in jax.tree.leaves(arguments[0].model))
    (out / "sizes.json").write_text(json.dumps(found, allow_nan=False))


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def use_dense_mlp() -> None:
    """Puts a dense MLP in the place of the experts of the Gated DeltaNet hybrid, which has no other."""
    from flax import nnx
    from maxtext.layers.linears import MlpBlock
    from maxtext.models import qwen3

    class Dense(nnx.Module):
        def __init__(self, config, mesh, quant=None, *, rngs):
            self.mlp = MlpBlock(
                config=config,
                mesh=mesh,
                in_features=config.emb_dim,
                intermediate_dim=config.mlp_dim,
                activations=config.mlp_activations,
                intermediate_dropout_rate=config.dropout_rate,
                dtype=config.dtype,
                weight_dtype=config.weight_dtype,
                quant=quant,
                model_mode=config.model_call_mode,
                rngs=rngs,
            )

        def __call__(self, hidden_states, deterministic, **others):
            kept = {k: v for k, v in others.items() if k != "forced_routed_experts"}
            return self.mlp(hidden_states, deterministic=deterministic, **kept), None

    qwen3.Qwen3NextSparseMoeBlock = Dense


if __name__ == "__main__":
    main()

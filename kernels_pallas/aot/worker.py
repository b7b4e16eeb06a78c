"""Compiles one call for one chip in its own process, and prints the result as JSON.

libtpu reads its flags when a process starts, so every compilation runs in its own process:
`python -m kernels_pallas.aot.worker CHIP DUMP_DIRECTORY registered NAME`, or
`... CHIP DUMP_DIRECTORY function MODULE:FUNCTION SHAPE ...`.
"""

import importlib
import json
import os
import pathlib
import re
import sys
import time
import unittest.mock

from kernels_pallas.aot.chips import CHIPS, Chip, host_of_gpus


def set_environment(chip: Chip, dump: str) -> None:
    """Sets the variables that must be set before jax is imported."""
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        MOSAIC_GPU_DUMP_PTXAS="1",
        LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true",
    )


def compile_for(chip: Chip, function, arguments) -> float:
    """Compiles the Pallas kernels of `function` for one chip; returns the seconds it took."""
    import jax
    import numpy as np
    from jax.experimental import topologies

    from kernels_pallas import dispatch

    if chip.platform == "cuda":
        from jax._src import xla_bridge

        xla_bridge.discover_pjrt_plugins()
        topology = host_of_gpus(chip)
    else:
        topology = topologies.get_topology_desc(platform=chip.platform, topology_name=chip.topology)
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    platform = "gpu" if chip.platform == "cuda" else chip.platform
    # Other projects' kernels ask jax for its backend.
    backend = unittest.mock.patch("jax.default_backend", return_value=platform)
    on_chip = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with dispatch.kernels_for(platform), backend, on_chip:
        if chip.platform == "cuda":  # kernels become custom calls only when lowered
            shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in arguments]
            compiled, operands = function, shapes
        else:
            compiled, operands = only_kernels(function, arguments, sharding)
        start = time.perf_counter()
        jax.jit(compiled).lower(*operands).compile()
        return time.perf_counter() - start


def only_kernels(function, arguments, sharding):
    """A function of the operands of all `pallas_call`s of `function`, and the operands' shapes.

    Only the kernels are compiled: the operations around them are thousands of bundles of copies and
    elementwise operations, which take longer to compile than the kernels.
    """
    import jax

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
    calls = list(pallas_calls(jax.make_jaxpr(function)(*shapes).jaxpr))
    if not calls:
        raise ValueError("the function calls no Pallas kernel.")

    def kernels(*operands):
        operands, results = iter(operands), []
        for call in calls:
            with jax.named_scope(call.params.get("name") or "kernel"):
                own = [next(operands) for _ in call.invars]
                results.append(call.primitive.bind(*own, **call.params))
        return results

    avals = [variable.aval for call in calls for variable in call.invars]
    return kernels, [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in avals]


def pallas_calls(jaxpr):
    """The equations of a program that call kernels, in order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from pallas_calls(inner)


def call_bytes(case) -> int:
    """Bytes of a call's arguments and results."""
    import jax

    from kernels_pallas import dispatch

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in case.arguments]
    with dispatch.kernels_for("tpu"):
        results = jax.tree.leaves(jax.eval_shape(case.function, *shapes))
    return sum(x.size * x.dtype.itemsize for x in [*shapes, *results])


def array(text: str):
    """The argument written as "bf16[8,128]"."""
    from kernels_pallas.aot.case import Array

    names = dict(bf16="bfloat16", f32="float32", f16="float16", s32="int32", s8="int8", pred="bool")
    match = re.fullmatch(r"(\w+)\[([\d,\s]*)\]", text)
    if not match:
        raise ValueError(f"a shape must be written like bf16[8,128], got {text!r}.")
    shape = tuple(int(n) for n in match[2].replace(" ", "").split(",") if n)
    return Array(shape, names.get(match[1], match[1]))


def main(arguments: list[str]) -> None:
    chip_name, dump, kind, name, *shapes = arguments
    chip = CHIPS[chip_name]
    set_environment(chip, dump)
    from kernels_pallas.aot import cases
    from kernels_pallas.aot.case import Case

    if kind == "registered":
        case = cases.by_name()[name]
    else:
        module, function = name.split(":")
        sys.path.insert(0, os.getcwd())
        function = getattr(importlib.import_module(module), function)
        case = Case(name, function, tuple(map(array, shapes)), tokens=1)
    try:
        seconds = compile_for(chip, case.function, case.arguments)
    except Exception as error:
        reason = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
        print("RESULT " + json.dumps(dict(compiles=False, reason=reason[:400]), allow_nan=False))
        return
    kernels = tpu_kernels(pathlib.Path(dump), case) if chip.platform == "tpu" else {}
    result = dict(compiles=True, seconds=round(seconds, 2), bytes=call_bytes(case), kernels=kernels)
    print("RESULT " + json.dumps(result, allow_nan=False))


def tpu_kernels(dump: pathlib.Path, case) -> dict:
    """The `bundles.Program` of each Pallas kernel of the call, from the dumps."""
    from kernels_pallas.aot import bundles

    kernels = {}
    for original in sorted(dump.glob("*-02-original.txt")):
        text = original.read_text()
        if "tpu_custom_call" not in _schedule(original):
            continue
        stem = original.name.removesuffix("-02-original.txt")
        name = re.sub(r"^\d+-", "", stem).split(".")[0]
        final = next(
            p
            for p in dump.glob(f"{_glob(stem)}-*-final_bundles.txt")
            if "schedule-analysis" not in p.name
        )
        table = next(dump.glob(f"{_glob(stem)}-*-final_hlo-static-per-bundle-utilization.txt"))
        trips = next((t for part, t in case.trips.items() if part in name), ())
        active = next((share for part, share in case.active.items() if part in name), 1.0)
        program = bundles.read(final, table, trips, active)
        sizes = {space: _allocated(text, space) for space in ("vmem", "smem")}
        while name in kernels:
            name += "'"
        kernels[name] = program._asdict() | sizes
    return kernels


def _schedule(original: pathlib.Path) -> str:
    stem = original.name.removesuffix("-02-original.txt")
    found = list(original.parent.glob(f"{_glob(stem)}-*-schedule-analysis_final_bundles.txt"))
    return found[0].read_text() if found else ""


def _glob(stem: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", stem)


def _allocated(text: str, space: str) -> int:
    """Bytes that a kernel allocates in a memory space for blocks and scratch, without spills."""
    sizes = re.findall(rf"(#allocation\d+) \[[^\n]*space={space}, size = (0x[0-9a-f]+)", text)
    return sum(int(size, 16) for size in dict(sizes).values())


if __name__ == "__main__":
    main(sys.argv[1:])

"""Times every op on a Hopper GPU, forward and backward, and compares it with other projects.

Each form is first compared with the float64 reference and timed only if its numbers are right. Results
are medians, FLOP/s or bytes/s, and the share of the roofline, whose peaks are measured in the same run.
Forms that are missing or fail are reported without a figure. A row has many documents. A form without
segment ids gets one document, and our kernel is also timed on that.

Run:     python benchmarks/gpu.py --json benchmarks/gpu.json
Table:   python benchmarks/gpu.py --render benchmarks/gpu.json          (writes benchmarks/gpu.md)
Try it:  python benchmarks/gpu.py --smoke           (a CPU, a few tokens, kernels interpreted)
Needs:   jax with its CUDA plugin, jaxtyping; optional: jax-linear-attention, torch and fla-core.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory too
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import gpu_ops
import jax
import jax.numpy as jnp
import numpy as np
from gpu_ops import OPS, Arrays, Op, Rival, Sizes

from kernels_pallas import dispatch

LENGTHS = (2048, 8192, 32768, 65536)
CHECKED = 1024  # tokens of the comparison with the reference
SMOKE = Sizes(heads=2, kv_heads=1, size=64, channels=128, slots=64)
KERNEL = "hybridlm, kernel"
OURS = {KERNEL: "pallas", "hybridlm, XLA": "chunked"}
#: The largest error of a kernel relative to that of the XLA form; one bfloat16 rounding is allowed.
ALLOWED, ENOUGH = 1.5, 2**-8
RIVAL_ALLOWED = 3e-2  # the largest error of other projects' forms, by norm
SECONDS = 0.3  # duration of the calls for one figure
FORWARD, BOTH = "forward", "forward + backward"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--json", type=pathlib.Path, help="file for the results, written after every op"
    )
    parser.add_argument(
        "--render", type=pathlib.Path, help="results file from which to write gpu.md"
    )
    parser.add_argument(
        "--ops", nargs="+", default=[""], help="only ops whose name contains one of these"
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--smoke", action="store_true", help="run on a CPU without timing")
    options = parser.parse_args(arguments)
    if options.render:
        page = pathlib.Path(__file__).with_name("gpu.md")
        page.write_text(render(json.loads(options.render.read_text())))
        return 0
    if not options.smoke and jax.default_backend() != "gpu":
        print(f"gpu.py: jax has no GPU here, it runs on: {jax.default_backend()}", file=sys.stderr)
        return 1
    sizes, lengths = (SMOKE, ()) if options.smoke else (Sizes(), options.lengths)
    results = {"date": time.strftime("%Y-%m-%d"), "versions": versions(), "records": []}
    if not options.smoke:
        results |= {"machine": card(), "peaks": peaks()}
    for op in OPS:
        if not any(part in op.name for part in options.ops):
            continue
        for record in measure(op, sizes, lengths, 192 if options.smoke else CHECKED):
            print(json.dumps(record, allow_nan=False), flush=True)
            results["records"].append(record)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    wrong = [r for r in results["records"] if r["form"] in OURS and "failed" in r]
    return bool(wrong)


# --- one op ------------------------------------------------------------------------------------


def measure(op: Op, sizes: Sizes, lengths, checked: int) -> Iterator[dict]:
    """Records of the op: the errors of each form or why there are none, then times of correct forms."""
    rivals = {}
    for name, make in op.rivals.items():
        try:
            rivals[name] = make()
        except ImportError as error:
            yield {"op": op.name, "form": name, "failed": f"not installed: {error}"}
    said = {}
    for record in check(op, rivals, gpu_ops.draw(checked, sizes, seed=1, document=checked // 8)):
        yield record
        said[record["form"]] = record  # for a wrong form the last record is `failed`
    right = {
        name: name in OURS or rivals[name].documents for name in said if "errors" in said[name]
    }
    timed = list(right.items())
    if KERNEL in right and not all(right.values()):
        timed.append((KERNEL, False))
    for tokens in lengths:
        inputs = gpu_ops.draw(tokens, sizes)
        for name, several in timed:
            form = name if several else f"{name}, one document"
            record = {"op": op.name, "form": form, "tokens": tokens}
            ids = inputs["segment_ids"] if several else None
            try:
                if name in OURS:
                    times = time_jax(with_ids(op, OURS[name], ids), op, inputs)
                else:
                    times = time_rival(rivals[name], op, inputs, ids)
            except Exception as error:
                yield record | {"failed": sentence(error)}
                continue
            documents = gpu_ops.documents(ids) if several else [tokens]
            yield record | {"seconds": times, "work": work(op, documents, sizes, inputs)}


def check(op: Op, rivals: dict[str, Rival], inputs: Arrays) -> Iterator[dict]:
    """A record of each form's errors against float64, and a second record, `failed`, for wrong forms.
    Our forms are checked on packed documents, others on one."""
    want, own = reference(op, inputs, inputs["segment_ids"]), {}
    for name, impl in OURS.items():
        record = {"op": op.name, "form": name}
        try:
            with interpreted():
                form = with_ids(op, impl, inputs["segment_ids"])
                own[name] = errors(gradients(form, op, inputs), want)
        except Exception as error:  # a form that fails is a result
            yield record | {"failed": sentence(error)}
            continue
        yield record | {"errors": own[name]}
    kernel, plain = (own.get(name) for name in OURS)
    for part in kernel if kernel and plain else ():
        if not kernel[part] <= max(ALLOWED * plain[part], ENOUGH):
            why = f"{part} is off by {kernel[part]:.1e}, the XLA form's by {plain[part]:.1e}"
            yield {"op": op.name, "form": "hybridlm, kernel", "failed": why}
            break
    want = reference(op, inputs, None)
    for name, rival in rivals.items():
        record = {"op": op.name, "form": name}
        try:
            off = errors(rival_gradients(rival, op, inputs), want)
        except Exception as error:
            yield record | {"failed": sentence(error)}
            continue
        yield record | {"errors": off}
        if not all(error <= RIVAL_ALLOWED for error in off.values()):
            yield record | {"failed": "its numbers are not the reference's"}


def with_ids(op: Op, impl: str, ids: jax.Array | None) -> Callable:
    """Our form of the op on these documents."""
    return lambda *values: op.ours(impl, *values, ids)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """On a machine without a GPU kernels are interpreted."""
    if jax.default_backend() == "gpu":
        yield
        return
    from jax.experimental.pallas import mosaic_gpu as plgpu

    with dispatch.kernels_for("gpu", plgpu.InterpretGPUParams()):
        yield


def gradients(form: Callable, op: Op, inputs: Arrays) -> dict[str, jax.Array]:
    """The output of a form, and its gradients from one fixed cotangent, as float32 on the host."""
    values = [inputs[name] for name in op.inputs]
    out, pulled = jax.jit(_both(form))(_cotangent(form, values), *values)
    named = _named(op, out, pulled)
    return {name: jax.device_get(x.astype(jnp.float32)) for name, x in named.items()}


def _named(op: Op, out, gradients) -> dict:
    return {"out": out} | {f"d{name}": x for name, x in zip(op.inputs, gradients)}


def _both(form: Callable) -> Callable:
    def forward_backward(d_out, *values):
        out, pull = jax.vjp(form, *values)
        return out, pull(d_out)

    return forward_backward


def _cotangent(form: Callable, values) -> jax.Array:
    shape = jax.eval_shape(form, *values)
    return jax.random.normal(jax.random.key(7), shape.shape, jnp.float32).astype(shape.dtype)


def reference(op: Op, inputs: Arrays, ids: jax.Array | None) -> dict[str, jax.Array]:
    """`gradients` of the token-by-token form in float64, on the CPU, with these segment ids."""
    with jax.default_device(jax.devices("cpu")[0]):
        values = [jnp.asarray(jax.device_get(inputs[name])) for name in op.inputs]
        ids = None if ids is None else jnp.asarray(jax.device_get(ids))
        d_out = _cotangent(lambda *a: op.ours("chunked", *a, ids), values)
        with jax.enable_x64(True):
            wide = [x.astype(jnp.float64) for x in (d_out, *values)]
            out, pulled = jax.jit(_both(lambda *a: op.ours("reference", *a, ids)))(*wide)
            return jax.device_get(_named(op, out, pulled))


def errors(found: dict, want: dict) -> dict[str, float]:
    """For each output and gradient, the norm of the difference divided by the norm."""
    norm = np.linalg.norm
    return {k: float(norm(found[k] - want[k]) / max(norm(want[k]), 1e-30)) for k in want}


def rival_gradients(rival: Rival, op: Op, inputs: Arrays) -> dict[str, jax.Array]:
    """`gradients` of another project's form, on one document."""
    if rival.form:
        return gradients(rival.form, op, inputs)
    values = [inputs[name] for name in op.inputs]
    tensors = _torch(values)
    out = rival.torch_form(*tensors)
    d_out = _cotangent(lambda *a: op.ours("chunked", *a, None), values)
    out.backward(_torch([d_out])[0].to(out.dtype))
    named = _named(op, out, [x.grad for x in tensors])
    return {name: x.detach().float().cpu().numpy() for name, x in named.items()}


def _torch(arrays) -> list:
    """torch leaf tensors on the GPU with the values and dtypes of the arrays."""
    import torch

    kinds = {jnp.dtype("bfloat16"): torch.bfloat16, jnp.dtype("float32"): torch.float32}
    return [
        torch.from_numpy(jax.device_get(x.astype(jnp.float32)))
        .to("cuda", kinds[x.dtype])
        .requires_grad_()
        for x in arrays
    ]


def sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


# --- times ---------------------------------------------------------------------------------------


def time_rival(rival: Rival, op: Op, inputs: Arrays, ids: jax.Array | None) -> dict[str, float]:
    """Seconds of another project's form."""
    if rival.form:
        given = {} if ids is None else dict(segment_ids=ids)
        return time_jax(lambda *a: rival.form(*a, **given), op, inputs)
    import torch

    values = [inputs[name] for name in op.inputs]
    tensors = _torch(values)
    d_out = torch.randn_like(rival.torch_form(*tensors))

    def forward():
        with torch.no_grad():
            rival.torch_form(*tensors)

    def both():
        for tensor in tensors:
            tensor.grad = None
        rival.torch_form(*tensors).backward(d_out)

    wait = torch.cuda.synchronize
    return {FORWARD: median(forward, wait), BOTH: median(both, wait)}


def time_jax(form: Callable, op: Op, inputs: Arrays) -> dict[str, float]:
    """Seconds of a call, forward and with gradients to every input."""
    values = [inputs[name] for name in op.inputs]
    d_out = _cotangent(form, values)
    return {
        FORWARD: seconds(jax.jit(form).lower(*values).compile(), *values),
        BOTH: seconds(jax.jit(_both(form)).lower(d_out, *values).compile(), d_out, *values),
    }


def seconds(program: Callable, *values) -> float:
    """`median` of a compiled program."""
    last = []

    def call():
        last[:] = [program(*values)]

    return median(call, lambda: jax.block_until_ready(last))


def median(call: Callable[[], None], wait: Callable[[], None], rounds: int = 7) -> float:
    """Seconds per call: the median of rounds of calls that wait only at the end."""

    def run(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        wait()
        return (time.perf_counter() - start) / times

    run(2)
    times = max(1, round(SECONDS / rounds / max(run(1), 1e-6)))
    return statistics.median(run(times) for _ in range(rounds))


def work(op: Op, documents: list[int], sizes: Sizes, inputs: Arrays) -> dict[str, dict[str, float]]:
    """FLOPs of the matrix products, and bytes if each array is read or written once."""
    values = [inputs[name] for name in op.inputs]
    out = jax.eval_shape(lambda *a: op.ours("chunked", *a, None), *values)
    read = sum(x.nbytes for x in values)
    written = out.size * out.dtype.itemsize
    flops = op.flops(documents, sizes)
    moved = read + written, 2 * (read + written)
    return {name: {"flops": f, "bytes": b} for name, f, b in zip((FORWARD, BOTH), flops, moved)}


# --- the card --------------------------------------------------------------------------------------


def peaks(size: int = 8192) -> dict[str, float]:
    """FLOP/s of a product of two bfloat16 matrices, bytes/s of a copy of 2 GiB (read and written)."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(lambda x, y: x @ y).lower(a, a).compile()
    flat = jnp.zeros(2**29, jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(flat).compile()
    return {
        "flops": 2 * size**3 / seconds(product, a, a),
        "bandwidth": 2 * flat.nbytes / seconds(copy, flat),
    }


def card() -> dict[str, str]:
    """The card, its driver and clocks, from nvidia-smi."""
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    asked = subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(fields.split(","), asked.stdout.strip().split(", ")))


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    names = (
        "jax",
        "jaxlib",
        "jax-cuda13-plugin",
        "jax-linear-attention",
        "torch",
        "triton",
        "fla-core",
    )
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# --- the page ----------------------------------------------------------------------------------------


def render(results: dict) -> str:
    """benchmarks/gpu.md of the results."""
    machine = ", ".join(f"{k} {v}" for k, v in results["machine"].items())
    tested = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    peak = results["peaks"]
    lines = [
        "# On a Hopper GPU",
        "",
        f"Made by `benchmarks/gpu.py` on {results['date']}: {machine}; {tested}.",
        "",
        f"Measured in the same run: {peak['flops'] / 1e12:.0f} TFLOP/s of a bfloat16 product,"
        f" {peak['bandwidth'] / 1e12:.2f} TB/s of a copy. Medians in ms; in brackets the share of the"
        f" roofline. A row has documents of {gpu_ops.DOCUMENT:,} tokens on average, or one where that is"
        " said. What was not measured is blank, and why stands below its table.",
    ]
    records = results["records"]
    for op in dict.fromkeys(r["op"] for r in records):
        mine = [r for r in records if r["op"] == op]
        lengths = sorted({r["tokens"] for r in mine if "seconds" in r})
        for direction in (FORWARD, BOTH):
            header = " | ".join(f"{tokens:,}" for tokens in lengths)
            lines += ["", f"## {op}, {direction}", "", f"| form | {header} |"]
            lines += ["|---|" + "--:|" * len(lengths)]
            for form in dict.fromkeys(r["form"] for r in mine):
                by_length = {r["tokens"]: r for r in mine if r["form"] == form and "seconds" in r}
                cells = [_cell(by_length.get(tokens), direction, peak) for tokens in lengths]
                lines.append(f"| {form} | {' | '.join(cells)} |")
        failed = [r for r in mine if "failed" in r]
        lines += [""] * bool(failed)
        for r in failed:
            at = f", {r['tokens']:,} tokens" if "tokens" in r else ""
            lines.append(f"- {r['form']}{at}: {r['failed']}")
    return "\n".join(lines) + "\n"


def _cell(record: dict | None, direction: str, peak: dict) -> str:
    if record is None:
        return ""
    seconds, task = record["seconds"][direction], record["work"][direction]
    floor = max(task["flops"] / peak["flops"], task["bytes"] / peak["bandwidth"])
    return f"{1e3 * seconds:.3f} ({floor / seconds:.0%})"


if __name__ == "__main__":
    sys.exit(main())

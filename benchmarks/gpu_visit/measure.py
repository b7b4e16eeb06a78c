"""Numbers and times of one form of one op, and the card's peaks: items of a visit.

A form's numbers are compared with the float64 reference; it is timed only if they are right. Times are
medians of calls that wait only at the end. A row has many documents; a form without segment ids gets one
document, and our kernel is also timed on that.
"""

import contextlib
import dataclasses
import importlib.metadata
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_visit import faults, ops
from benchmarks.gpu_visit.ops import Arrays, Op, Rival, Sizes
from benchmarks.gpu_visit.plan import KERNEL, XLA
from kernels_pallas import dispatch
from kernels_pallas.testing import rounding

OURS = {KERNEL: "pallas", XLA: "chunked"}
#: The largest error of a kernel relative to that of the XLA form, whose products may round as the kernel's
#: do (as in the tests of kernels); one bfloat16 rounding is allowed.
ALLOWED, ENOUGH = 1.5, 2**-8
LARGEST = 3e-2  # error of any form, by norm
SECONDS, ROUNDS = 0.2, 5  # duration of the calls for one figure, and parts of it
FORWARD, BOTH = "forward", "forward + backward"


class WrongNumbers(Exception):
    """A form computes something else than the reference."""


# --- numbers -------------------------------------------------------------------------------------


def numbers(
    out, op: str, form: str, sizes: Mapping[str, int] | None, tokens: int, document: int
) -> None:
    """Records the form's errors against float64: ours on packed documents of `document` tokens on
    average, others' on one unless they take several.

    Raises:
      WrongNumbers: where they are too large, or not finite.
    """
    op, sizes = ops.by_name()[op], Sizes(**(sizes or {}))
    inputs = ops.draw(op.inputs, tokens, sizes, seed=1, document=document)
    rival = None if form in OURS else op.rivals[form]()
    packed = rival is None or rival.documents
    ids = inputs["segment_ids"] if packed else None
    want = reference(op, inputs, ids)
    bounds = dict.fromkeys(want, LARGEST)
    if rival is None:
        plain = errors(gradients(with_ids(op, "chunked", ids), op, inputs), want)
        bounds = {k: min(LARGEST, max(ENOUGH, ALLOWED * error)) for k, error in plain.items()}
    made: list[dispatch.Choice] = []
    if form == KERNEL:
        with dispatch.choices() as made, interpreted():
            found = gradients(with_ids(op, "pallas", ids), op, inputs)
    elif form == XLA:
        found = gradients(with_ids(op, "chunked", ids), op, inputs)
    else:
        found = rival_gradients(rival, op, inputs, ids)
    off = errors(faults.poisoned(found), want)
    if form == KERNEL and any(not off[part] <= bounds[part] for part in off):
        bounds |= _of_rounded_products(op, inputs, ids, want, bounds)
    finite = {part: error for part, error in off.items() if np.isfinite(error)}
    wrong = [part for part in off if not off[part] <= bounds[part]]
    about = dict(op=op.name, form=form, sizes=_other(sizes), calls=_calls(made))
    out.write("numbers", **about, errors=finite, right=not wrong)
    if wrong:
        (first, *_) = wrong
        said = f"{first} is off by {off[first]:.1e}, and {bounds[first]:.1e} is allowed"
        if first not in finite:
            said = f"{first} is not finite"
        raise WrongNumbers(said)


def _of_rounded_products(op: Op, inputs: Arrays, ids, want: dict, bounds: dict) -> dict[str, float]:
    """The bounds that are larger if the XLA form rounds the operands of its products to bfloat16, as
    kernels do; by default it is more exact. None of them where XLA has no such products."""
    with contextlib.suppress(Exception), products_rounded():
        rounded = errors(gradients(with_ids(op, "chunked", ids), op, inputs), want)
        allowed = {k: min(LARGEST, ALLOWED * x) for k, x in rounded.items() if np.isfinite(x)}
        return {k: x for k, x in allowed.items() if x > bounds[k]}
    return {}


@contextlib.contextmanager
def products_rounded() -> Iterator[None]:
    """Products of programs traced and compiled inside round float32 operands to bfloat16."""
    if jax.default_backend() == "gpu":
        with jax.default_matmul_precision("BF16_BF16_F32"):
            yield
    else:
        with rounding.dots_rounded():
            yield


def _other(sizes: Sizes) -> dict[str, int]:
    """The sizes that are not the usual ones."""
    usual = dataclasses.asdict(Sizes())
    return {k: v for k, v in dataclasses.asdict(sizes).items() if v != usual[k]}


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


def rival_gradients(rival: Rival, op: Op, inputs: Arrays, ids) -> dict[str, jax.Array]:
    """`gradients` of another project's form."""
    if rival.form:
        return gradients(with_rival_ids(rival, ids), op, inputs)
    values = [inputs[name] for name in op.inputs]
    tensors = _torch(values)
    out = rival.torch_form(*tensors)
    d_out = _cotangent(lambda *a: op.ours("chunked", *a, None), values)
    out.backward(_torch([d_out])[0].to(out.dtype))
    named = _named(op, out, [x.grad for x in tensors])
    return {name: x.detach().float().cpu().numpy() for name, x in named.items()}


def with_rival_ids(rival: Rival, ids: jax.Array | None) -> Callable:
    """Another project's form on these documents."""
    given = {} if ids is None else dict(segment_ids=ids)
    return lambda *values: rival.form(*values, **given)


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


# --- times ---------------------------------------------------------------------------------------


def times(
    out,
    op: str,
    form: str,
    packed: bool,
    lengths: Sequence[int],
    sizes: Mapping[str, int] | None = None,
    compile_only: bool = False,
) -> None:
    """Records the form's seconds at each length, or only compiles the programs.

    Args:
      packed: rows of several documents; otherwise a row is one.
    """
    op, sizes = ops.by_name()[op], Sizes(**(sizes or {}))
    rival = None if form in OURS else op.rivals[form]()
    wrong = []
    for tokens in lengths:
        try:
            record = _at_length(op, form, rival, packed, tokens, sizes, compile_only)
        except Exception as error:  # the other lengths may do
            wrong.append(f"at {tokens} tokens {type(error).__name__}: {error}")
            continue
        name = form if packed or rival is not None else f"{form}, one document"
        kind = "compiled" if compile_only else "times"
        out.write(kind, op=op.name, form=name, tokens=tokens, sizes=_other(sizes), **record)
    if len(wrong) == len(lengths) or (wrong and not compile_only):
        raise RuntimeError(wrong[0])


def _at_length(
    op: Op,
    form: str,
    rival: Rival | None,
    packed: bool,
    tokens: int,
    sizes: Sizes,
    compile_only: bool,
) -> dict:
    """What `times` records of one length."""
    inputs = ops.draw(op.inputs, tokens, sizes)
    ids = inputs["segment_ids"] if packed else None
    with dispatch.choices() as made, interpreted():
        if rival is not None and rival.torch_form:
            found, compiling = time_torch(rival, op, inputs), 0.0
        else:
            own = with_ids(op, OURS[form], ids) if rival is None else with_rival_ids(rival, ids)
            start = time.perf_counter()
            programs = compiled(own, op, inputs)
            compiling = round(time.perf_counter() - start, 1)
            if compile_only:
                return dict(compile_seconds=compiling)
            found = time_programs(programs)
    documents = ops.documents(inputs["segment_ids"]) if packed else [tokens]
    done = work(op, documents, sizes, inputs)
    return dict(seconds=found, compile_seconds=compiling, work=done, calls=_calls(made))


def _calls(made: Sequence[dispatch.Choice]) -> list[dict]:
    """Each of our ops that the form calls, once, as the table of measurements describes it."""
    found: list[dict] = []
    for choice in made:
        call = choice._asdict()
        if call not in found:
            found.append(call)
    return found


def compiled(form: Callable, op: Op, inputs: Arrays) -> dict[str, tuple]:
    """The program of a call and its arguments, forward and with gradients to every input."""
    values = [inputs[name] for name in op.inputs]
    d_out = _cotangent(form, values)
    return {
        FORWARD: (jax.jit(form).lower(*values).compile(), *values),
        BOTH: (jax.jit(_both(form)).lower(d_out, *values).compile(), d_out, *values),
    }


def time_programs(programs: Mapping[str, tuple]) -> dict[str, float]:
    """Seconds of each program."""
    return {name: seconds(program, *values) for name, (program, *values) in programs.items()}


def time_torch(rival: Rival, op: Op, inputs: Arrays) -> dict[str, float]:
    """Seconds of a form of torch, forward and with gradients to every input."""
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


def seconds(program: Callable, *values) -> float:
    """`median` of a compiled program."""
    last = []

    def call():
        last[:] = [program(*values)]

    return median(call, lambda: jax.block_until_ready(last))


def median(call: Callable[[], None], wait: Callable[[], None]) -> float:
    """Seconds per call: the median of rounds of calls that wait only at the end."""

    def run(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        wait()
        return (time.perf_counter() - start) / times

    run(2)
    times = max(1, round(SECONDS / ROUNDS / max(run(1), 1e-6)))
    return statistics.median(run(times) for _ in range(ROUNDS))


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


def card(out, size: int = 8192, megabytes: int = 2048) -> None:
    """Records the card, the versions and the peaks.

    Raises:
      WrongNumbers: where a peak is not a number.
    """
    out.write("versions", date=time.strftime("%Y-%m-%d"), versions=versions())
    device = jax.devices()[0]
    out.write("card", platform=device.platform, chip=device.device_kind, facts=asked_of_the_card())
    found = faults.poisoned(peaks(size, megabytes))
    if not all(np.isfinite(x) for x in found.values()):
        raise WrongNumbers("a peak is not finite")
    out.write("peaks", **found)


def peaks(size: int, megabytes: int) -> dict[str, float]:
    """FLOP/s of a product of two bfloat16 matrices, bytes/s of a copy (read and written)."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(lambda x, y: x @ y).lower(a, a).compile()
    flat = jax.random.normal(jax.random.key(1), (megabytes * 2**18,), jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(flat).compile()
    return {
        "flops": 2 * size**3 / seconds(product, a, a),
        "bandwidth": 2 * flat.nbytes / seconds(copy, flat),
    }


def asked_of_the_card() -> dict[str, str]:
    """The card, its driver and clocks, from nvidia-smi; empty where that is missing."""
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return dict(zip(fields.split(","), asked.stdout.strip().split(", ")))
    return {}


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    names = (
        "jax",
        "jaxlib",
        "jax-cuda13-plugin",
        "nvidia-cudnn-cu13",
        "flax",
        "jax-linear-attention",
        "torch",
        "triton",
        "fla-core",
    )
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found

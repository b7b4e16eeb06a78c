"""Counts FLOPs, HBM traffic and collectives in a compiled program's text.

XLA's own cost analysis counts the body of a loop once, and a scanned model is one loop. Here each
computation counts once per execution.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from hybridlm.aot import hlo_loops
from hybridlm.aot.hlo_text import (
    STARTS_COLLECTIVE,
    Computations,
    Instruction,
    array_bytes,
    arrays,
    called,
    callee,
    is_reduce_scatter,
    parse,
)
from hybridlm.aot.hlo_traffic import traffic

# Work beside a collective, whatever it moves through HBM.
_WORK = frozenset("while conditional call dot convolution".split())
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """All collectives of one kind in one step.

    Attributes:
      static: number of them in the program's text.
      count: number of executions.
      payload: bytes of the gathered arrays, or of the arrays to reduce, on each chip.
      sent: least bytes that a chip sends: on a ring of n chips (n-1)/n of the payload, and twice
        that for an all-reduce.
      overlapped: those of `sent` that are on their way while the chip does other work: the
        collective is part of fusions that compute, or other work lies between its start and its end.
    """

    static: int
    count: int
    payload: float
    sent: float
    overlapped: float


class ProgramCost(NamedTuple):
    """The work of one chip in one execution of the program.

    Attributes:
      flops: of matrix products and convolutions; a multiply-add counts 2.
      hbm_bytes: read from and written to HBM: each operation's operands and results once, slices
        of larger arrays as slices, and arrays in on-chip memory not at all.
      collectives: by kind, those of `KINDS` that occur.
      kernels: executions of each Pallas kernel by name.
      unknown_loops: loops of unknown length, whose bodies are counted once.
    """

    flops: float
    hbm_bytes: float
    collectives: dict[str, Collective]
    kernels: dict[str, int]
    unknown_loops: int


def read(text: str) -> ProgramCost:
    """Reads the text of `jax.stages.Compiled.as_text()`."""
    computations, entry = parse(text)
    runs, unknown = hlo_loops.runs(computations, entry)
    fused = fused_computations(computations)
    flops = hbm_bytes = 0.0
    found: dict[str, list] = defaultdict(lambda: [0, 0, 0.0, 0.0, 0.0])
    kernels: dict[str, int] = defaultdict(int)
    beside = _beside_work(computations, fused)
    for name, times in runs.items():
        body = {i.name: i for i in computations[name]}
        flops += times * sum(_product_flops(i, body) for i in body.values())
        if name not in fused:
            hbm_bytes += times * sum(traffic(i, body, computations) for i in body.values())
        goes_on = name in beside or (name in fused and not is_reduce_scatter(name))
        for start, kind, payload, sent in _collectives(name, body, name in fused):
            overlapped = sent if goes_on or start in beside else 0.0
            figures = 1, times, times * payload, times * sent, times * overlapped
            for slot, value in enumerate(figures):
                found[kind][slot] += value
        for i in body.values():
            if kernel := kernel_name(i):
                kernels[kernel] += times
    return ProgramCost(
        flops,
        hbm_bytes,
        {k: Collective(*found[k]) for k in KINDS if k in found},
        dict(kernels),
        unknown,
    )


def fused_computations(computations: Computations) -> set[str]:
    """Names of fusion bodies and of functions applied to each element."""
    return {
        name
        for body in computations.values()
        for i in body
        for role, name in called(i)
        if i.opcode == "fusion" or (role == "to_apply" and i.opcode not in ("call", "call-start"))
    }


# --- matrix products ------------------------------------------------------------------------------


def _product_flops(i: Instruction, body: dict[str, Instruction]) -> float:
    if i.opcode == "dot":
        left = arrays(body[i.operands[0]].shape)[0].dims
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)[1]
        inner = math.prod(left[int(d)] for d in contracted.split(",") if d)
        return 2.0 * math.prod(arrays(i.shape)[0].dims) * inner
    if i.opcode == "convolution":
        return _convolution_flops(i, body)
    return 0.0


def _convolution_flops(i: Instruction, body: dict[str, Instruction]) -> float:
    """FLOPs of a convolution, without products with padding or dilation zeros.

    TPU programs write matrix products as convolutions, and batches as dilated windows.
    """
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", i.attributes)
    left, right = (arrays(body[name].shape)[0].dims for name in i.operands[:2])
    out = arrays(i.shape)[0].dims
    size = dict(zip(labels[1], left)), dict(zip(labels[2], right)), dict(zip(labels[3], out))
    window = dict(
        re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{(.*?)\}", i.attributes) or " ")[0])
    )
    spatial = sorted(c for c in labels[1] if c.isdigit())
    pairs = 1
    for axis, label in enumerate(spatial):

        def setting(name: str, default: str, axis: int = axis) -> str:
            return window[name].split("x")[axis] if name in window else default

        pads = [int(p) for p in re.findall(r"-?\d+", setting("pad", "0_0").replace("_", " "))]
        pairs *= _valid_pairs(
            size[0][label],
            size[1][label],
            size[2][label],
            int(setting("stride", "1")),
            pads[0],
            int(setting("lhs_dilate", "1")),
            int(setting("rhs_dilate", "1")),
        )
    return 2.0 * size[2]["b"] * size[2]["f"] * size[1]["i"] * pairs


def _valid_pairs(
    inputs: int, taps: int, outputs: int, stride: int, pad: int, dilate: int, tap_dilate: int
) -> int:
    """Number of (output, tap) pairs of one dimension that read an entry of the input."""
    if (stride, pad, dilate, tap_dilate) == (1, 0, 1, 1) and taps == 1:
        return outputs
    extent = (inputs - 1) * dilate + 1
    count = 0
    for output in range(outputs):
        for tap in range(taps):
            at = output * stride + tap * tap_dilate - pad
            count += 0 <= at < extent and at % dilate == 0
    return count


# --- collectives and kernels ----------------------------------------------------------------------


def _collectives(
    computation: str, body: dict[str, Instruction], fused: bool
) -> Iterator[tuple[str, str, float, float]]:
    """(instruction, kind, payload, sent) of each collective that starts in a computation.

    A TPU program overlaps a collective with other work by repeating it in the fusions that continue
    it; only its start counts. A reduce-scatter is a fusion of an all-reduce and a slice.
    """
    started = {
        name for i in body.values() if STARTS_COLLECTIVE in i.attributes for name in i.operands
    }
    scatter = is_reduce_scatter(computation)
    for i in body.values():
        kind = i.opcode.removesuffix("-start")
        if kind not in KINDS or (fused and not scatter and i.name not in started):
            continue
        if scatter and kind == "all-reduce":
            kind = "reduce-scatter"
        operands = sum(array_bytes(body[name].shape) for name in i.operands if name in body)
        n = group_size(i.attributes)
        if kind == "all-gather":
            payload = operands * n
        else:
            payload = operands
        share = 1.0 if kind == "collective-permute" else (n - 1) / n
        yield i.name, kind, payload, payload * share * (2 if kind == "all-reduce" else 1)


def _beside_work(computations: Computations, fused: set[str]) -> set[str]:
    """Names of instructions that start a collective which ends after other work has been done.

    Of a start that calls a computation, the name of that computation. A compiled program's text has
    instructions in the order in which they start. A start without operands, for a SparseCore, gets
    them from its update.
    """
    found = set()
    for name in computations.keys() - fused:
        body = {i.name: i for i in computations[name]}
        begun: dict[str, str] = {}
        pending: dict[str, str] = {}
        for i in body.values():
            if i.opcode.endswith("-start"):
                if started := _started(i):
                    (pending if i.operands else begun)[i.name] = started
            elif i.opcode.endswith("-done"):
                pending.pop(i.operands[0], None)
            elif i.opcode.endswith("-update") and i.operands[0] in (begun | pending):
                start = i.operands[0]
                pending[i.name] = begun.pop(start, None) or pending.pop(start)
            elif pending and (
                i.opcode in _WORK or kernel_name(i) or traffic(i, body, computations)
            ):
                found.update(pending.values())
    return found


def _started(i: Instruction) -> str | None:
    """What a start starts: itself if it is a collective, or the computation that it calls."""
    if i.opcode.removesuffix("-start") in KINDS:
        return i.name  # an all-reduce applies its sum
    return callee(i, "calls") or callee(i, "to_apply")


def group_size(attributes: str) -> int:
    """Number of chips in one group of a collective."""
    named = re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", attributes)
    if named:
        sizes = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", named[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if tiled:
        return int(tiled[2])
    return 2  # a collective-permute lists pairs


def kernel_name(i: Instruction) -> str | None:
    """The name of the Pallas kernel that a custom call runs; None for any other instruction."""
    if 'custom_call_target="tpu_custom_call"' not in i.attributes:
        return None
    stated = re.search(r"kernel_name\W+(\w+)", i.attributes)
    return stated[1] if stated else re.sub(r"\.\d.*", "", i.name)  # "kernel.7.v_ref"

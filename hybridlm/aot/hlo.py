"""Counts FLOPs, HBM traffic and collectives in a compiled program's text.

XLA's own cost analysis counts the body of a loop once, and a scanned model is one loop. Here each
computation counts once per execution.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "bf16": 16,
    "f16": 16,
    "s32": 32,
    "u32": 32,
    "f32": 32,
    "s64": 64,
    "u64": 64,
    "f64": 64,
    "c64": 64,
    "c128": 128,
}
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_SLICES = ("dynamic-slice", "slice", "gather")
# Operations without HBM traffic of their own: names of buffers, and calls whose bodies count.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all"
    " partition-id replica-id opt-barrier iota".split()
)


class Collective(NamedTuple):
    """All collectives of one kind in one step.

    Attributes:
      static: number of them in the program's text.
      count: number of executions.
      payload: bytes of the gathered arrays, or of the arrays to reduce, on each chip.
      sent: least bytes that a chip sends: on a ring of n chips (n-1)/n of the payload, and twice
        that for an all-reduce.
    """

    static: int
    count: int
    payload: float
    sent: float


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


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


class ArrayShape(NamedTuple):
    bits: int
    dims: tuple[int, ...]
    space: int  # 0 is HBM

    @property
    def bytes(self) -> float:
        return self.bits * math.prod(self.dims) / 8


def read(text: str) -> ProgramCost:
    """Reads the text of `jax.stages.Compiled.as_text()`."""
    computations, entry = _parse(text)
    runs, unknown = _runs(computations, entry)
    fused = _fused(computations)
    flops = traffic = 0.0
    found: dict[str, list] = defaultdict(lambda: [0, 0, 0.0, 0.0])
    kernels: dict[str, int] = defaultdict(int)
    for name, times in runs.items():
        body = {i.name: i for i in computations[name]}
        flops += times * sum(_product_flops(i, body) for i in body.values())
        if name not in fused:
            traffic += times * sum(_traffic(i, body, computations) for i in body.values())
        for kind, payload, sent in _collectives(name, body, name in fused):
            for slot, value in enumerate((1, times, times * payload, times * sent)):
                found[kind][slot] += value
        for i in body.values():
            if 'custom_call_target="tpu_custom_call"' in i.attributes:
                kernels[_kernel_name(i)] += times
    return ProgramCost(
        flops,
        traffic,
        {k: Collective(*found[k]) for k in KINDS if k in found},
        dict(kernels),
        unknown,
    )


# --- parsing ------------------------------------------------------------------------------------


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations[head[1]] = []
            entry = head[1] if line.startswith("ENTRY") else entry
        elif instruction := _instruction(line):
            current.append(instruction)
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else re.match(r"\S*", rest).end()
    opcode = re.match(r" ([\w\-]+)\(", rest[end:])
    if not opcode:
        return None
    start = end + opcode.end() - 1
    stop = _closing(rest, start)
    operands = tuple(_NAME.findall(rest[start:stop]))
    # Constants have their value, and parameters their number, in place of operands.
    inside = rest[start + 1 : stop] if opcode[1] in ("constant", "parameter") else ""
    return Instruction(
        match[2], rest[:end], opcode[1], operands, inside + rest[stop + 1 :], bool(match[1])
    )


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return start + match.start()
    return len(text)


def _arrays(shape: str) -> list[ArrayShape]:
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        bits = _BITS.get(dtype, 8 if dtype.startswith("f8") else 0)
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(re.sub(r"\D", "", d)) for d in dims.split(",") if d)
        found.append(ArrayShape(bits, sizes, int(space[1]) if space else 0))
    return found


def _bytes(shape: str, hbm_only: bool = False) -> float:
    return sum(a.bytes for a in _arrays(shape) if not (hbm_only and a.space))


# --- execution counts ------------------------------------------------------------------------------------


def _called(i: Instruction) -> Iterator[tuple[str, str]]:
    """(role, name) of each computation that an instruction calls."""
    for role in ("calls", "body", "condition", "to_apply"):
        for name in re.findall(rf"\b{role}=%([\w.\-]+)", i.attributes):
            yield role, name
    for names in re.findall(r"branch_computations=\{([^}]*)\}", i.attributes):
        for name in _NAME.findall(names):
            yield "branch", name
    for name in re.findall(r"(?:true|false)_computation=%([\w.\-]+)", i.attributes):
        yield "branch", name


def _fused(computations: dict[str, list[Instruction]]) -> set[str]:
    """Names of fusion bodies and of functions applied to each element."""
    return {
        name
        for body in computations.values()
        for i in body
        for role, name in _called(i)
        if i.opcode == "fusion" or (role == "to_apply" and i.opcode != "call")
    }


def _runs(computations: dict[str, list[Instruction]], entry: str) -> tuple[dict[str, int], int]:
    """Executions of each computation, and the number of loops of unknown length.

    A function applied to each element of an array counts once: it has no matrix products.
    """
    runs: dict[str, int] = defaultdict(int)
    unknown = 0

    def run(name: str, times: int) -> None:
        nonlocal unknown
        runs[name] += times
        for i in computations[name]:
            trips = 1
            if i.opcode == "while":
                trips = _trips(i, computations)
                unknown += trips is None
            for role, called in _called(i):
                run(called, times * (trips or 1) if role in ("body", "condition") else times)

    run(entry, 1)
    return runs, unknown


def _trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if stated:
        return int(stated[1])
    condition = next(name for role, name in _called(loop) if role == "condition")
    bounds, names = [], [condition]
    while names:  # a scan counts up from 0 to a constant
        for i in computations[names.pop()]:
            names += [name for _, name in _called(i)]
            if i.opcode == "constant" and re.match(r"[su]32\[\]", i.shape):
                bounds.append(int(re.match(r"-?\d+", i.attributes)[0]))
    return bounds[0] if len(bounds) == 1 else None


# --- matrix products ------------------------------------------------------------------------------


def _product_flops(i: Instruction, body: dict[str, Instruction]) -> float:
    if i.opcode == "dot":
        left = _arrays(body[i.operands[0]].shape)[0].dims
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)[1]
        inner = math.prod(left[int(d)] for d in contracted.split(",") if d)
        return 2.0 * math.prod(_arrays(i.shape)[0].dims) * inner
    if i.opcode == "convolution":
        return _convolution_flops(i, body)
    return 0.0


def _convolution_flops(i: Instruction, body: dict[str, Instruction]) -> float:
    """FLOPs of a convolution, without products with padding or dilation zeros.

    TPU programs write matrix products as convolutions, and batches as dilated windows.
    """
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", i.attributes)
    left, right = (_arrays(body[name].shape)[0].dims for name in i.operands[:2])
    out = _arrays(i.shape)[0].dims
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


# --- memory ---------------------------------------------------------------------------------------


def _traffic(i: Instruction, body: dict[str, Instruction], computations: dict) -> float:
    """HBM bytes read and written by one instruction."""
    if i.opcode in _FREE or i.opcode.endswith("-done"):
        return 0.0

    def operand(index: int) -> float:
        known = index < len(i.operands) and i.operands[index] in body
        return _bytes(body[i.operands[index]].shape, hbm_only=True) if known else 0.0

    result = _bytes(i.shape, hbm_only=True)
    if i.opcode == "custom-call" and "tpu_custom_call" not in i.attributes:
        return 0.0  # allocations and annotations
    if i.opcode.endswith("-start"):  # its result includes its operands
        return max(result, 2 * operand(0)) if i.opcode != "copy-start" else result
    if i.opcode in _SLICES:
        return result + (_bytes(i.shape) if operand(0) else 0.0)
    if i.opcode == "dynamic-update-slice":
        return 2 * operand(1)
    if i.opcode == "fusion":
        inner = computations[next(name for role, name in _called(i) if role == "calls")]
        return _fusion_traffic(i, inner, operand)
    return result + sum(map(operand, range(len(i.operands))))


def _fusion_traffic(i: Instruction, inner: list[Instruction], operand) -> float:
    """HBM bytes of a fusion: of arrays that it slices or updates in place, those parts only."""
    named = {x.name: x for x in inner}
    users: dict[str, list[Instruction]] = defaultdict(list)
    for x in inner:
        for name in x.operands:
            users[name].append(x)

    def read(name: str) -> float | None:
        """Bytes read from a buffer; None for the whole buffer."""
        total = 0.0
        for user in users[name]:
            first = user.operands[0] == name
            if user.opcode == "bitcast":
                part = read(user.name)
            elif user.opcode in _SLICES and first:
                part = _bytes(user.shape)
            elif user.opcode == "dynamic-update-slice" and first:
                part = 0.0
            else:
                part = None
            if part is None:
                return None
            total += part
        return total

    def written(x: Instruction) -> float:
        if x.opcode == "tuple":
            return sum(written(named[name]) for name in x.operands)
        if x.opcode == "bitcast" and named[x.operands[0]].opcode == "dynamic-update-slice":
            x = named[x.operands[0]]
        if x.opcode == "dynamic-update-slice":
            in_hbm = _bytes(x.shape, hbm_only=True)
            return min(in_hbm, _bytes(named[x.operands[1]].shape))
        return _bytes(x.shape, hbm_only=True)

    total = written(next(x for x in inner if x.root))
    for x in inner:
        if x.opcode == "parameter":
            index = int(re.match(r"\d+", x.attributes)[0])
            part = read(x.name)
            total += operand(index) if part is None else min(part, operand(index))
    return total


# --- collectives and kernels ----------------------------------------------------------------------


def _collectives(
    computation: str, body: dict[str, Instruction], fused: bool
) -> Iterator[tuple[str, float, float]]:
    """(kind, payload, sent) of each collective that starts in a computation.

    A TPU program overlaps a collective with other work by repeating it in the fusions that continue
    it; only its start counts. A reduce-scatter is a fusion of an all-reduce and a slice.
    """
    started = {
        name
        for i in body.values()
        if '"AsyncCollectiveStart"' in i.attributes
        for name in i.operands
    }
    scatter = "all-reduce-scatter" in computation
    for i in body.values():
        kind = i.opcode.removesuffix("-start")
        if kind not in KINDS or (fused and not scatter and i.name not in started):
            continue
        if scatter and kind == "all-reduce":
            kind = "reduce-scatter"
        operands = sum(_bytes(body[name].shape) for name in i.operands if name in body)
        n = group_size(i.attributes)
        if kind == "all-gather":
            payload = operands * n
        else:
            payload = operands
        share = 1.0 if kind == "collective-permute" else (n - 1) / n
        yield kind, payload, payload * share * (2 if kind == "all-reduce" else 1)


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


def _kernel_name(i: Instruction) -> str:
    stated = re.search(r"kernel_name\W+(\w+)", i.attributes)
    return stated[1] if stated else re.sub(r"[.\d]+$", "", i.name)

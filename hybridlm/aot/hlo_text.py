"""Parses the text of a compiled program into computations and instructions."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = frozenset(
    "all-gather reduce-scatter all-reduce all-to-all collective-permute".split()
)
# A TPU program overlaps a collective with other work by repeating it in the fusions that continue
# it, from the one that contains this mark.
STARTS_COLLECTIVE = '"AsyncCollectiveStart"'

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


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      shape: of the result, as written: an array with its layout, or a tuple of them.
      attributes: what follows the operands; it begins with a constant's value and with a
        parameter's number.
      root: whether it is the computation's result.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def number(self) -> int:
        """The position of a parameter, or the element that a get-tuple-element takes."""
        stated = r"\d+" if self.opcode == "parameter" else r".*?\bindex=(\d+)"
        match = re.match(stated, self.attributes)
        return int(match[match.lastindex or 0])


class ArrayShape(NamedTuple):
    bits: int
    dims: tuple[int, ...]
    space: int  # 0 is HBM

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        return self.bits * self.elements / 8


Computations = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Computations, str]:
    """The computations of a program by name, and the name of the one that runs first."""
    computations: Computations = {}
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


def arrays(shape: str) -> list[ArrayShape]:
    """The arrays of a shape, of nested tuples too, in order."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        bits = _BITS.get(dtype, 8 if dtype.startswith("f8") else 0)
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(re.sub(r"\D", "", d)) for d in dims.split(",") if d)
        found.append(ArrayShape(bits, sizes, int(space[1]) if space else 0))
    return found


def array_bytes(shape: str, hbm_only: bool = False) -> float:
    """Bytes of all arrays of a shape, or of those that are in HBM."""
    return sum(a.bytes for a in arrays(shape) if not (hbm_only and a.space))


def called(i: Instruction) -> Iterator[tuple[str, str]]:
    """(role, name) of each computation that an instruction calls."""
    for role in ("calls", "body", "condition", "to_apply"):
        for name in re.findall(rf"\b{role}=%([\w.\-]+)", i.attributes):
            yield role, name
    for names in re.findall(r"branch_computations=\{([^}]*)\}", i.attributes):
        for name in _NAME.findall(names):
            yield "branch", name
    for name in re.findall(r"(?:true|false)_computation=%([\w.\-]+)", i.attributes):
        yield "branch", name


def callee(i: Instruction, role: str) -> str | None:
    """The name of the computation that an instruction calls in that role."""
    return next((name for r, name in called(i) if r == role), None)


def is_reduce_scatter(computation: str) -> bool:
    """Whether that fusion of an all-reduce and a slice is a reduce-scatter."""
    return "all-reduce-scatter" in computation


def root_of(body: list[Instruction]) -> Instruction:
    """The computation's result."""
    return next(i for i in body if i.root)


def inlined(body: list[Instruction], computations: Computations) -> list[Instruction]:
    """A fusion's computation with the fusions inside it replaced by their instructions."""
    flat: list[Instruction] = []
    _inline(body, computations, "", None, flat)
    return flat


def _inline(
    body: list[Instruction],
    computations: Computations,
    prefix: str,
    arguments: tuple[str, ...] | None,
    flat: list[Instruction],
) -> tuple[str, ...]:
    """Appends a computation's instructions to `flat`.

    Args:
      prefix: of new names.
      arguments: names in `flat` of the parameters; None for the outermost computation.

    Returns:
      Names in `flat` of the result, or of the elements of a result that is a tuple.
    """
    # A nested fusion's name stands for its elements' names.
    known: dict[str, tuple[str, ...]] = {}
    for i in body:
        operands = tuple(name for o in i.operands for name in known[o])
        if i.opcode == "parameter" and arguments is not None:
            known[i.name] = (arguments[i.number],)
        elif i.opcode == "fusion":
            inner = computations[callee(i, "calls")]
            known[i.name] = _inline(inner, computations, f"{prefix}{i.name}/", operands, flat)
        elif i.opcode == "get-tuple-element" and len(known[i.operands[0]]) > 1:
            known[i.name] = (known[i.operands[0]][i.number],)
        elif i.opcode == "tuple" and arguments is not None:
            known[i.name] = operands
        else:
            known[i.name] = (prefix + i.name,)
            root = i.root and arguments is None
            flat.append(i._replace(name=prefix + i.name, operands=operands, root=root))
            continue
        if i.root and arguments is None:  # the whole body is one nested fusion
            _make_root(i, known[i.name], flat)
    return known[root_of(body).name]


def _make_root(i: Instruction, names: tuple[str, ...], flat: list[Instruction]) -> None:
    opcode = "tuple" if i.shape.startswith("(") else "bitcast"
    flat.append(i._replace(opcode=opcode, operands=names, attributes="", root=True))

"""Counts the HBM bytes that an instruction of a compiled program reads and writes.

Each array counts once per instruction, and only the part that is used: a slice of it, also where a
fusion inside the fusion takes the slice, or the update of an array that is updated in place.
"""

import re
from collections import defaultdict

from hybridlm.aot.hlo_text import (
    COLLECTIVES,
    STARTS_COLLECTIVE,
    ArrayShape,
    Computations,
    Instruction,
    array_bytes,
    arrays,
    callee,
    inlined,
    is_reduce_scatter,
    root_of,
)

_SLICES = ("dynamic-slice", "slice", "gather")
# Operations without HBM traffic of their own: names of buffers, and calls whose bodies count.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all"
    " partition-id replica-id opt-barrier iota".split()
)
# Operations for which one element of the result takes many of an operand.
_WHOLE = COLLECTIVES | frozenset(
    "dot convolution reduce reduce-window select-and-scatter scatter sort fft custom-call".split()
)
_ENDS_COLLECTIVE = '"AsyncCollectiveDone"'


def traffic(i: Instruction, body: dict[str, Instruction], computations: Computations) -> float:
    """HBM bytes read and written by one instruction of the computation `body`."""
    if i.opcode in _FREE or i.opcode.endswith(("-update", "-done")):
        return 0.0

    def operand(index: int) -> float:
        known = index < len(i.operands) and i.operands[index] in body
        return array_bytes(body[i.operands[index]].shape, hbm_only=True) if known else 0.0

    if i.opcode == "custom-call" and "tpu_custom_call" not in i.attributes:
        return 0.0  # allocations and annotations
    if i.opcode == "fusion":
        return _fusion_traffic(i, computations[callee(i, "calls")], computations, operand)
    if i.opcode.endswith("-start"):
        return _start_traffic(i, body, operand)
    result = array_bytes(i.shape, hbm_only=True)
    if i.opcode in _SLICES:
        return result + (array_bytes(i.shape) if operand(0) else 0.0)
    if i.opcode == "dynamic-update-slice":
        update = array_bytes(body[i.operands[1]].shape)
        return operand(1) + (update if result else 0.0)
    # A kernel may take one array twice, for two kinds of blocks of it.
    return result + sum(operand(i.operands.index(name)) for name in set(i.operands))


def _start_traffic(i: Instruction, body: dict[str, Instruction], operand) -> float:
    """HBM bytes of an operation that runs beside others, counted at its start.

    Its shape is ((operands), result, ...) for most of them.
    """
    if callee(i, "calls") or i.opcode == "call-start":
        return 0.0  # the computation that it calls counts
    if i.opcode == "copy-start":  # (copy, original, ...)
        return array_bytes(i.shape, hbm_only=True)
    if i.opcode.removesuffix("-start") in _SLICES:
        part: ArrayShape = arrays(i.shape)[len(i.operands)]
        return part.bytes * (bool(operand(0)) + (part.space == 0))
    if i.opcode == "dynamic-update-slice-start":
        update = array_bytes(body[i.operands[1]].shape)
        return operand(1) + (update if operand(0) else 0.0)
    return max(array_bytes(i.shape, hbm_only=True), 2 * operand(0))


def _fusion_traffic(
    i: Instruction, inner: list[Instruction], computations: Computations, operand
) -> float:
    """HBM bytes of a fusion."""
    flat = inlined(inner, computations)
    if any(_ENDS_COLLECTIVE in x.attributes for x in flat):
        return 0.0  # its buffers counted at the start
    starts = any(STARTS_COLLECTIVE in x.attributes for x in flat)
    fusion = _Fusion(flat, goes_on=not starts and not is_reduce_scatter(callee(i, "calls")))
    total = _started(i) if starts else fusion.written(root_of(flat))
    for x in flat:
        if x.opcode == "parameter":
            bits = max((a.bits for a in arrays(x.shape)), default=0)
            total += min(fusion.used[x.name] * bits / 8, operand(x.number))
    return total


def _started(i: Instruction) -> float:
    """Bytes that the fusion which starts a collective writes: its result less its operands."""
    aliased = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", i.attributes)
    passed_on = set(re.findall(r"\{(\d+)\}: ", aliased[1])) if aliased else ()
    parts = enumerate(arrays(i.shape))
    return sum(a.bytes for n, a in parts if not a.space and str(n) not in passed_on)


class _Fusion:
    """The instructions of a fusion, without fusions inside.

    Attributes:
      goes_on: whether its collectives are those that an earlier fusion started.
      used: how many elements of each array the result depends on, at most.
    """

    def __init__(self, flat: list[Instruction], goes_on: bool):
        self.goes_on = goes_on
        self._named = {x.name: x for x in flat}
        self._size = {x.name: sum(a.elements for a in arrays(x.shape)) for x in flat}
        root = root_of(flat)
        self._in_place = set(self._updates(root))
        self.used: dict[str, float] = defaultdict(float, {root.name: self._size[root.name]})
        for x in reversed(flat):
            self.used[x.name] = min(self.used[x.name], self._size[x.name])
            for index, name in enumerate(x.operands):
                self.used[name] += self._part(x, index, name) if self.used[x.name] else 0.0

    def _part(self, x: Instruction, index: int, name: str) -> float:
        """Elements of one operand that the used part of `x` takes."""
        used, size = self.used[x.name], self._size[name]
        if x.opcode == "tuple":
            return 0.0 if self._is_passed_on(self._named[name]) else size
        if x.opcode in COLLECTIVES and self.goes_on:
            return 0.0
        if x.opcode in _WHOLE:
            return size
        if x.opcode in _SLICES:
            return used if index == 0 else size
        if x.opcode == "dynamic-update-slice":
            if index == 0 and x.name in self._in_place:
                return 0.0
            return used if index < 2 else size
        if x.opcode in ("pad", "concatenate"):
            return used
        return size * used / max(1, self._size[x.name])  # element by element

    def written(self, x: Instruction) -> float:
        """Bytes of a result that the fusion writes."""
        if x.opcode == "tuple":
            parts = (self._named[name] for name in x.operands)
            return sum(self.written(p) for p in parts if not self._is_passed_on(p))
        in_hbm = array_bytes(x.shape, hbm_only=True)
        updates = self._updates(x)
        if not updates:
            return in_hbm
        parts = (self._named[self._named[name].operands[1]] for name in updates)
        return min(in_hbm, sum(array_bytes(p.shape) for p in parts))

    def _is_passed_on(self, x: Instruction) -> bool:
        """Whether a part of the result counts elsewhere: an operand, or a started collective."""
        return x.opcode == "parameter" or (x.opcode in COLLECTIVES and self.goes_on)

    def _updates(self, x: Instruction) -> list[str]:
        """The updates that make a result from an operand in place; empty for other results."""
        if x.opcode == "tuple":
            return [u for name in x.operands for u in self._updates(self._named[name])]
        found = []
        while x.opcode in ("bitcast", "dynamic-update-slice"):
            if x.opcode == "dynamic-update-slice":
                found.append(x.name)
            x = self._named[x.operands[0]]
        return found if x.opcode == "parameter" else []

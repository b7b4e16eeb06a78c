"""Counts how often each computation of a compiled program runs.

XLA states the length of some loops. For the others it follows from the counter: its start, the
bound in the condition, and the step in the body, which is 2 where XLA unrolled the loop by two.
"""

import re
from collections import defaultdict
from typing import NamedTuple

from hybridlm.aot.hlo_text import Computations, Instruction, called, callee, root_of

# Operations that pass an integer on.
_SAME = frozenset("copy bitcast convert reshape broadcast optimization-barrier".split())
_INTEGER = re.compile(r"[su]\d+\[\]")
_MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE"}


class _Scalar(NamedTuple):
    """An integer: a constant, or an element of the loop's state plus a constant."""

    element: int | None
    offset: int


_Known = dict[int, int]  # elements of a loop's state that stay as they are, with their values
_Values = dict[str, _Scalar | None]  # None: not an integer, or not a sum of such terms


def runs(computations: Computations, entry: str) -> tuple[dict[str, int], int]:
    """Executions of each computation, and the number of loops of unknown length.

    A loop of unknown length counts once. A function applied to each element of an array counts
    once: it has no matrix products.
    """
    times: dict[str, int] = defaultdict(int)
    integers, unknown = _Integers(computations), 0

    def run(name: str, count: int, known: _Known) -> None:
        nonlocal unknown
        times[name] += count
        for i in computations[name]:
            trips, inside = 1, {}
            if i.opcode == "while":
                inside = integers.fixed(i, name, known)
                trips = _trips(i, name, integers, known, inside)
                unknown += trips is None
                trips = 1 if trips is None else trips
            for _, inner in called(i):
                run(inner, count * trips, inside)

    run(entry, 1, {})
    return times, unknown


def _trips(
    loop: Instruction, home: str, integers: "_Integers", known: _Known, inside: _Known
) -> int | None:
    """Iterations of a loop; None if they cannot be told.

    Args:
      home: the computation with the loop.
      known, inside: integers of the state that stay as they are, of a loop around this one and of
        this one.
    """
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if stated:
        return int(stated[1])
    compared = integers.comparison(callee(loop, "condition"))
    if compared is None:
        return None
    left, right, direction = compared
    left, right = _with_values(left, inside), _with_values(right, inside)
    if left.element is None:
        left, right, direction = right, left, _MIRRORED.get(direction)
    if left.element is None or right.element is not None or direction not in _MIRRORED:
        return None
    start = integers.initial(loop, left.element, home, known)
    result = integers.result(loop, left.element)
    if start is None or result is None or result.element != left.element:
        return None
    return _count(start + left.offset, right.offset, result.offset, direction)


def _count(start: int, bound: int, step: int, direction: str) -> int | None:
    """Iterations of a counter that goes on while it compares so with the bound."""
    distance = bound - start
    if direction in ("GT", "GE"):
        distance, step = -distance, -step
    if direction in ("LE", "GE"):
        distance += 1
    if direction == "NE" and step < 0:
        distance, step = -distance, -step
    if step <= 0 or (direction == "NE" and distance % step):
        return None
    return max(0, -(-distance // step))


def _with_values(value: _Scalar, known: _Known) -> _Scalar:
    if value.element in known:
        return _Scalar(None, known[value.element] + value.offset)
    return value


class _Integers:
    """The integers that a program's computations make from constants and the loops' states."""

    def __init__(self, computations: Computations):
        self.computations = computations
        self._of: dict[str, _Values] = {}

    def of(self, name: str) -> _Values:
        """The integers of a computation, where a loop's state is the parameter."""
        if name not in self._of:
            self._of[name] = self._values(name, {})
        return self._of[name]

    def result(self, loop: Instruction, element: int) -> _Scalar | None:
        """What the body makes of an element of the state."""
        body = callee(loop, "body")
        root = root_of(self.computations[body])
        return self.of(body)[root.operands[element]] if root.opcode == "tuple" else None

    def initial(self, loop: Instruction, element: int, home: str, known: _Known) -> int | None:
        """The value of an element of the state before the loop, if it is a constant."""
        state = next(i for i in self.computations[home] if i.name == loop.operands[0])
        if state.opcode != "tuple":
            return None
        value = self.of(home)[state.operands[element]]
        value = value and _with_values(value, known)
        return value.offset if value and value.element is None else None

    def fixed(self, loop: Instruction, home: str, known: _Known) -> _Known:
        """Elements of the state that begin as constants and that the body passes on."""
        root = root_of(self.computations[callee(loop, "body")])
        found = {}
        for element in range(len(root.operands) if root.opcode == "tuple" else 0):
            if self.result(loop, element) == _Scalar(element, 0):
                start = self.initial(loop, element, home, known)
                if start is not None:
                    found[element] = start
        return found

    def comparison(self, condition: str) -> tuple[_Scalar, _Scalar, str] | None:
        """Both sides and the direction of the comparison that a condition returns."""
        name, arguments = condition, {}
        root = root_of(self.computations[name])
        while root.opcode in ("fusion", *_SAME):
            if root.opcode == "fusion":
                arguments = self._bound(root, self._values(name, arguments))
                name = callee(root, "calls")
                root = root_of(self.computations[name])
            else:
                root = next(i for i in self.computations[name] if i.name == root.operands[0])
        if root.opcode != "compare":
            return None
        values = self._values(name, arguments)
        left, right = (values[operand] for operand in root.operands)
        direction = re.search(r"direction=(\w+)", root.attributes)[1]
        return None if left is None or right is None else (left, right, direction)

    def _values(self, name: str, arguments: _Values) -> _Values:
        """Args:
        arguments: values of the parameters of a fusion; a loop's state has none.
        """
        values: _Values = {}
        named = {i.name: i for i in self.computations[name]}
        for i in named.values():
            values[i.name] = self._value(i, named, values, arguments)
        return values

    def _value(
        self, i: Instruction, named: dict[str, Instruction], values: _Values, arguments: _Values
    ) -> _Scalar | None:
        if i.opcode == "parameter":
            return arguments.get(i.name)
        if i.opcode in _SAME:
            return values.get(i.operands[0])
        if i.opcode in ("add", "subtract"):
            left, right = (values.get(name) for name in i.operands)
            return _sum(left, right, 1 if i.opcode == "add" else -1)
        if not _INTEGER.match(i.shape):
            return None
        if i.opcode == "constant":
            return _Scalar(None, int(re.match(r"-?\d+", i.attributes)[0]))
        if i.opcode == "get-tuple-element" and named[i.operands[0]].opcode == "parameter":
            return _Scalar(i.number, 0)
        if i.opcode == "fusion":
            inner = callee(i, "calls")
            values = self._values(inner, self._bound(i, values))
            return values[root_of(self.computations[inner]).name]
        return None

    def _bound(self, call: Instruction, values: _Values) -> _Values:
        """Values of the parameters of a fusion's computation."""
        inner = self.computations[callee(call, "calls")]
        parameters = (p for p in inner if p.opcode == "parameter")
        return {p.name: values.get(call.operands[p.number]) for p in parameters}


def _sum(left: _Scalar | None, right: _Scalar | None, sign: int) -> _Scalar | None:
    """left + sign * right, if at most one of them is an element of the state."""
    if left is None or right is None or (right.element is not None and sign < 0):
        return None
    if left.element is not None and right.element is not None:
        return None
    element = left.element if right.element is None else right.element
    return _Scalar(element, left.offset + sign * right.offset)

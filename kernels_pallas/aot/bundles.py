"""Reads the dumps of the TPU compiler: the number of VLIW bundles a kernel executes, and their slots.

A kernel is one program: the grid is its outermost loop, `pl.when` a branch over a region. Bundles are
weighted by how often they run. A loop's trip count is a constant in the program, or the case states it
if it depends on data. If a region's predicate compares a grid index with a constant, its weight is the
share of steps where it holds (1/4 for "at the first step of four"); otherwise it is 1, an upper bound.

A bundle takes at least one cycle, and the compiler schedules bundles for the latencies it knows, so
their number is a lower bound on cycles. It does not include waiting for memory: compare the roofline
columns, or measure on a chip, to see whether copies are hidden.
"""

import math
import pathlib
import re
from typing import NamedTuple

SLOTS = (
    "MXU",
    "XLU",
    "VALU",
    "VPOP",
    "EUP",
    "VLOAD",
    "VLOAD:FILL",
    "VSTORE",
    "VSTORE:SPILL",
    "SALU",
)
DELAY_SLOTS = 4  # bundles after a branch that still execute

_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(\w\w)?\s*:\s*(>*(?:\s*>)*)\s*\{(.*)")
_BRANCH = re.compile(r"sbr\.rel (?:\((!?)(%p\d+)(?:_\w+)?\) )?target = \$region(\d+)")
_EXIT = re.compile(r"scmp\.\w+\.s32\.totalorder (%s\d+)_s\d+, (\S+) /\* loop exit test")
_DEFINITION = re.compile(r"(%[ps]\d+)_[ps]\d+ = (\S+) ([^;}]*?(?:/\*.*?\*/)?)\s*(?=;;|\}|$)")
_INDEX = re.compile(r"iteration index, stage = 1 iter bound = (\d+)")


class Program(NamedTuple):
    """The program of one kernel.

    Attributes:
      steps: grid steps.
      bundles, slots: executed in all steps, weighted.
      capacity: slots of a bundle.
      code: bundles of the program text.
      spills, inner_spills: stored vector spills in the program text, and in loops within a step.
      unknown: regions with an unknown predicate, counted as always run.
      open_loops: loops with an unknown trip count, counted once.
    """

    steps: int
    bundles: float
    slots: dict[str, float]
    capacity: dict[str, int]
    code: int
    spills: int
    inner_spills: int
    unknown: int
    open_loops: int


class _Bundle(NamedTuple):
    address: int
    depth: int
    is_loop: bool
    text: str

    @property
    def is_empty(self) -> bool:
        return self.text.lstrip().startswith("}")


def read(final_bundles: pathlib.Path, utilization: pathlib.Path, trips=(), active=1.0) -> Program:
    """The program in a `*-final_bundles.txt` and its `*-static-per-bundle-utilization.txt`.

    `trips` are the mean trip counts of loops that depend on data, in the program's order; `active` is
    the share of grid steps at which data-dependent regions run.
    """
    text = final_bundles.read_text()
    bundles = list(_bundles(text))
    capacity, table = _utilization(utilization.read_text())
    grid = _grid(text)
    loops = list(_loops(bundles))
    weights = [1.0] * len(bundles)
    steps, open_loops, trips, definitions = 1, 0, list(trips), _definitions(text)
    for first, last, depth in loops:
        count = _trip_count(bundles[first : last + 1], definitions)
        if depth == 1 and grid:
            steps = math.prod(grid)
            count = steps
        elif count is None and trips:
            count = trips.pop(0)
        elif count is None:
            count, open_loops = 1, open_loops + 1
        for at in range(first, last + 1):
            weights[at] *= count
    unknown = 0
    for first, last, predicate, negated in _regions(bundles, text):
        skipped = _probability(predicate, definitions, grid)
        if skipped is None:
            unknown += 1
            # The pipeline's region, around all others, runs at every step.
            skipped = 0.0 if last - first > 0.9 * (len(bundles) - first) else 1 - active
            negated = False
        runs = skipped if negated else 1 - skipped
        for at in range(first, last):
            weights[at] *= runs
    slots = dict.fromkeys(SLOTS, 0.0)
    inner = 0
    for weight, row, bundle in zip(weights, table, bundles):
        for name, used in zip(SLOTS, row):
            slots[name] += weight * used
        inner += row[SLOTS.index("VSTORE:SPILL")] * (bundle.depth > 1)
    spills = sum(row[SLOTS.index("VSTORE:SPILL")] for row in table)
    total = sum(weights)
    return Program(steps, total, slots, capacity, len(bundles), spills, inner, unknown, open_loops)


def _bundles(text):
    """The bundles; lines that continue one (its comments) are skipped."""
    for line in text.splitlines():
        match = _BUNDLE.match(line)
        if match:
            address, label, marks, body = match.groups()
            yield _Bundle(int(address, 16), marks.count(">"), label == "LB", body)


def _loops(bundles):
    """(first, last, depth) of every loop: from its label on, all bundles that are at least as deep."""
    for first, bundle in enumerate(bundles):
        if bundle.is_loop:
            last = first
            while last + 1 < len(bundles):
                following = bundles[last + 1]
                same_loop = following.depth > bundle.depth or not following.is_loop
                # Empty bundles carry no depth marks.
                if not same_loop or (following.depth < bundle.depth and not following.is_empty):
                    break
                last += 1
            yield first, last, bundle.depth


def _trip_count(bundles, definitions):
    """The trip count from the loop's exit test: (the bound - the counter's first value) / its step.
    None if the bound is not a constant."""
    depth = bundles[0].depth
    for bundle in reversed(bundles):
        match = _EXIT.search(bundle.text)
        if match and bundle.depth == depth:
            counter, bound = match.groups()
            if not bound.lstrip("-").isdigit():
                return None
            step = re.match(r"(\d+), ", definitions.get(counter, ("", ""))[1])
            phi = re.search(rf"= sphi (%s\d+)_\w+, {counter}_", bundles[0].text)
            first = definitions.get(phi[1], ("", ""))[1] if phi else ""
            first = int(first.split()[0]) if first.split()[:1] and first.split()[0].isdigit() else 0
            return -(-(int(bound) - first) // int(step[1] if step else 1))
    return None


def _regions(bundles, text):
    """(first, last, predicate, negated) of the regions that forward branches skip; last is excluded."""
    starts = {}
    for number, bundle in enumerate(bundles):
        for region in re.findall(r"(?:Start(?:/End empty)?) region (\d+)", bundle.text):
            starts.setdefault(int(region), number)
    for number, bundle in enumerate(bundles):
        for negated, predicate, region in _BRANCH.findall(bundle.text):
            target = starts.get(int(region))
            first = number + DELAY_SLOTS + 1
            if predicate and target is not None and target > first:
                yield first, target, predicate, bool(negated)


def _definitions(text):
    return {name: (op, rest) for name, op, rest in _DEFINITION.findall(text)}


def _grid(text):
    """The kernel's grid, as stated by its copies."""
    found = re.search(r"iteration_bounds: \(([\d, ]+)\)", text)
    return tuple(int(n) for n in found[1].replace(" ", "").strip(",").split(",")) if found else ()


def _probability(name, definitions, grid):
    """The share of grid steps at which a predicate holds; None if it depends on data."""
    if name not in definitions:
        return None
    op, rest = definitions[name]
    operands = re.findall(r"(!?)(%[ps]\d+)", rest.split("/*")[0])

    def of(number):
        negated, operand = operands[number]
        share = _probability(operand, definitions, grid)
        return None if share is None else (1 - share if negated else share)

    if op in ("por", "pand", "pnand", "pnor") and len(operands) == 2:
        first, second = of(0), of(1)
        if first is None or second is None:
            return None
        both, either = first * second, first + second - first * second
        return dict(por=either, pand=both, pnand=1 - both, pnor=1 - either)[op]
    if op in ("pneg", "pmov") and len(operands) == 1:
        share = of(0)
        return None if share is None else (1 - share if op == "pneg" else share)
    compared = re.match(r"scmp\.(\w+)\.s32", op)
    constant = re.search(r",\s*(-?\d+)\s*(?:/\*|$)", rest)
    if compared and constant and operands:
        bound = _index_bound(operands[0][1], definitions, grid)
        if bound is None:
            return None
        value = int(constant[1])
        tests = dict(
            eq=lambda i: i == value,
            ne=lambda i: i != value,
            lt=lambda i: i < value,
            le=lambda i: i <= value,
            gt=lambda i: i > value,
            ge=lambda i: i >= value,
        )
        if compared[1] in tests:
            return sum(map(tests[compared[1]], range(bound))) / bound
    return None


def _index_bound(name, definitions, grid):
    """The number of values of a grid index in the compute stage."""
    if name not in definitions:
        return None
    dimension = _INDEX.search(definitions[name][1])
    if dimension and int(dimension[1]) < len(grid):
        return grid[int(dimension[1])]
    return None


def _utilization(text):
    """The slots of a bundle, and how many each bundle uses."""
    head, table = text.split("== UTILIZATION:")
    names = re.search(r"^(MXU.*)$", head, re.M)[1].split(", ")
    numbers = head.split(names[-1])[-1].split()
    rows = [tuple(map(int, line.split())) for line in table.strip().splitlines()]
    return dict(zip(names, map(int, numbers))), rows

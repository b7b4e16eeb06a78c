"""The table of measurements that "auto" obeys (`kernels_pallas/measured.json`), from the records of a visit.

A kernel gets a row for a class of calls if its numbers were right and it was faster than the XLA form,
forward as well as forward and backward. A class is a call's features as measured, a band of windows and a
band of lengths; bands reach half-way, in the logarithm, to the neighbours that were measured, and a factor
of two beyond the last ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu_visit.page import DIRECTIONS
from benchmarks.gpu_visit.plan import KERNEL, XLA
from kernels_pallas.measured import ANY, Row

MARGIN = 1.03  # faster by less is noise
#: Features that only kernels of TPUs read.
IRRELEVANT = ("vmem_mib", "step_heads")


def rows(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The table.

    Raises:
      ValueError: where the records are not those of a GPU.
    """
    cards = [r for r in records if r["kind"] == "card"]
    if (
        not cards
        or {r["platform"] for r in cards} != {"gpu"}
        or len({r["chip"] for r in cards}) > 1
    ):
        raise ValueError("the results must be those of one kind of GPU; run the visit on one.")
    about = [r for r in records if r["kind"] == "versions"][-1]
    said = f"{about['date']}, jax {about['versions'].get('jax')}"
    right = {
        _key(r) for r in records if r["kind"] == "numbers" and r["form"] == KERNEL and r["right"]
    }
    speedups = _speedups(records)
    found = []
    for (op, backend, _), of_window in _classes(records, right).items():
        windows = sorted(w for w in of_window if w is not None)
        for window, call in of_window.items():
            of_length = {n: min(speedups[k] for k in keys) for n, keys in call["of"].items()}
            won = {n: speedup for n, speedup in of_length.items() if speedup >= MARGIN}
            case = {k: ANY if k in IRRELEVANT else v for k, v in call["case"].items()}
            if window is not None:
                low, high = _band(window, windows)
                case["window"] = {"from": low, "to": high}
            lengths = sorted(of_length)
            for run in _runs(sorted(won), lengths):
                tokens = (_band(run[0], lengths)[0], _band(run[-1], lengths)[1])
                speedup = round(min(won[n] for n in run), 2)
                found.append(Row(op, backend, cards[-1]["chip"], case, tokens, speedup, said))
    return found


def _key(record: Mapping[str, Any]) -> tuple[str, tuple]:
    return record["op"], tuple(sorted(record["sizes"].items()))


def _speedups(records) -> dict[tuple, float]:
    """For each (key, length) the smaller of both directions' speedups of the kernel over XLA; 0
    where the XLA form was not timed."""
    times = {
        (_key(r), r["tokens"], r["form"]): r["seconds"] for r in records if r["kind"] == "times"
    }
    found = {}
    for (key, tokens, form), kernel in times.items():
        if form != KERNEL:
            continue
        plain = times.get((key, tokens, XLA))
        found[key, tokens] = min(plain[d] / kernel[d] for d in DIRECTIONS) if plain else 0.0
    return found


def _classes(records, right) -> dict[tuple, dict[int | None, dict]]:
    """By (op, backend, features but the window), by window: a call's `case`, and for each length of the
    kernel's call, in which a token may have several steps, `of` the (key, tokens) that were timed. A class
    of which one call was wrong is left out."""
    wrong = {
        _class(call)
        for r in records
        if r["kind"] == "numbers" and r["form"] == KERNEL and not r["right"]
        for call in r.get("calls", ())
        if len(r["calls"]) == 1
    }
    found: dict[tuple, dict] = {}
    for r in records:
        if r["kind"] != "times" or r["form"] != KERNEL or _key(r) not in right:
            continue
        if len(r["calls"]) != 1:  # several ops in one, such as NHA
            continue
        (call,) = r["calls"]
        if (of := _class(call)) not in wrong:
            *features, window = of
            at = found.setdefault(tuple(features), {})
            one = at.setdefault(window, dict(case=call["case"], of={}))
            one["of"].setdefault(call["tokens"], set()).add((_key(r), r["tokens"]))
    return found


def _class(call: Mapping[str, Any]) -> tuple:
    """(op, backend, features but the window, window)."""
    case = {k: v for k, v in call["case"].items() if k not in IRRELEVANT}
    window = case.pop("window", None)
    rest = tuple(sorted((k, str(v)) for k, v in case.items()))
    return call["op"], call["backend"], rest, window


def _runs(won: Sequence[int], measured: Sequence[int]) -> list[list[int]]:
    """The lengths that were won, in runs of neighbours among the measured ones."""
    found: list[list[int]] = []
    for n in won:
        place = measured.index(n)
        if found and place and measured[place - 1] == found[-1][-1]:
            found[-1].append(n)
        else:
            found.append([n])
    return found


def _band(value: int, measured: Sequence[int]) -> tuple[int, int]:
    """From half-way to the measured value below to just before half-way to the one above."""
    place = measured.index(value)
    low = math.ceil(math.sqrt(measured[place - 1] * value)) if place else -(-value // 2)
    if place + 1 < len(measured):
        return low, math.ceil(math.sqrt(value * measured[place + 1])) - 1
    return low, 2 * value

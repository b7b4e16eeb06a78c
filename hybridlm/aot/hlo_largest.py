"""The instructions of a compiled program that move the most bytes through HBM.

Run: python -m hybridlm.aot.hlo_largest PROGRAM.txt [COUNT], where the file is what
`jax.stages.Compiled.as_text()` returns. `hybridlm compile --largest COUNT` prints the same.
"""

import argparse
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from hybridlm.aot import hlo, hlo_loops
from hybridlm.aot.hlo_text import Instruction, arrays, parse
from hybridlm.aot.hlo_traffic import traffic

_SIZES = re.compile(r"\b([a-z]+\d*\w*\[[\d,]*\])")
SHAPES = 3  # of a result that is a tuple, in the table


class Mover(NamedTuple):
    """Instructions of one operation, source and result, as in the layers of a repeated pattern.

    Attributes:
      names: of the instructions in the program's text.
      opcode: e.g. "fusion", "copy"; of a Pallas kernel, the kernel's name.
      result: types and sizes of the arrays of the result, without layouts; the largest first.
      source: JAX's name of the operation; "" where the compiler states none.
      executions: of all these instructions together, in one execution of the program.
      hbm_bytes: read and written by all executions.
    """

    names: tuple[str, ...]
    opcode: str
    result: tuple[str, ...]
    source: str
    executions: int
    hbm_bytes: float


def movers(text: str) -> list[Mover]:
    """All instructions with HBM traffic, the largest first; their bytes add up to `hlo.read`'s."""
    computations, entry = parse(text)
    runs, _ = hlo_loops.runs(computations, entry)
    fused = hlo.fused_computations(computations)
    found: dict[tuple, Mover] = {}
    for name, times in runs.items():
        body = {} if name in fused else {i.name: i for i in computations[name]}
        for i in body.values():
            if moved := times * traffic(i, body, computations):
                key = _kind(i)
                known = found.get(key, Mover((), *key, 0, 0.0))
                found[key] = known._replace(
                    names=(*known.names, i.name),
                    executions=known.executions + times,
                    hbm_bytes=known.hbm_bytes + moved,
                )
    return sorted(found.values(), key=lambda m: -m.hbm_bytes)


def _kind(i: Instruction) -> tuple[str, tuple[str, ...], str]:
    """The opcode, the result and the source of an instruction."""
    stated = re.search(r'op_name="([^"]*)"', i.attributes)
    sizes = zip(_SIZES.findall(i.shape), arrays(i.shape), strict=True)
    result = tuple(name for name, _ in sorted(sizes, key=lambda pair: -pair[1].bytes))
    return hlo.kernel_name(i) or i.opcode, result, stated[1] if stated else ""


def table(text: str, count: int) -> Iterator[str]:
    """The lines of a table of the `count` largest."""
    found = movers(text)
    total = sum(m.hbm_bytes for m in found)
    yield f"{'GB':>8} {'share':>6} {'times':>6}  operation, result, source"
    for m in found[:count]:
        result = " ".join(m.result[:SHAPES]) + " ..." * (len(m.result) > SHAPES)
        share = f"{100 * m.hbm_bytes / total:.1f}%"
        yield f"{m.hbm_bytes / 1e9:>8.2f} {share:>6} {m.executions:>6,}  {m.opcode} {result} {m.source}"
    rest = found[count:]
    left = sum(m.hbm_bytes for m in rest)
    yield f"{left / 1e9:>8.2f} {100 * left / max(total, 1):>5.1f}%         {len(rest):,} others"
    yield f"{total / 1e9:>8.2f}   100%         in all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", type=pathlib.Path, help="the text of a compiled program")
    parser.add_argument("count", type=int, nargs="?", default=20)
    given = parser.parse_args()
    try:
        text = given.program.read_text()
    except OSError as error:
        parser.error(f"{given.program} cannot be read: {error.strerror}")
    print("\n".join(table(text, given.count)))


if __name__ == "__main__":
    main()

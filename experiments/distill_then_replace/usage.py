"""What a stage takes: wall time, processor time and memory, kept as lines of a file."""

import contextlib
import pathlib
import resource
import time
from collections.abc import Iterator

from hybridlm.settings import json_text

FILE = "usage.jsonl"


def processor_seconds() -> float:
    """Processor time of this process and of its finished children, user and system, all threads."""
    found = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in found)


@contextlib.contextmanager
def measured(workdir: pathlib.Path, stage: str) -> Iterator[None]:
    """Appends a line with what the block took, also where it fails; a kill -9 leaves no line."""
    wall, processor = time.monotonic(), processor_seconds()
    try:
        yield
    finally:
        line = {
            "stage": stage,
            "wall_seconds": round(time.monotonic() - wall, 1),
            "processor_seconds": round(processor_seconds() - processor, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        with (workdir / FILE).open("a") as file:
            file.write(json_text.dumps(line) + "\n")


def read(workdir: pathlib.Path) -> list[dict]:
    """All lines, oldest first."""
    path = workdir / FILE
    return [json_text.loads(x) for x in path.read_text().splitlines()] if path.exists() else []

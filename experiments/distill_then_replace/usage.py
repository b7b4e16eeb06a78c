"""What a stage takes: wall time, processor time and memory, kept as lines of a file."""

import contextlib
import pathlib
import resource
import time
from collections.abc import Iterator

from hybridlm.settings import json_text

FILE = "usage.jsonl"
STATUS, CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def processor_seconds() -> float:
    """Processor time of this process and of its finished children, user and system, all threads."""
    found = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in found)


def peak_bytes() -> int:
    """The most memory that the process has held since the peak was last reset."""
    found = _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if found is None else found


def reset_peak() -> bool:
    """Lets the peak of memory begin anew at what is held now; False where the system cannot."""
    try:
        CLEAR.write_text("5")  # 5 sets VmHWM to what is held now (man 5 proc_pid_clear_refs)
    except OSError:  # not Linux, or not allowed
        return False
    peak, held = _status("VmHWM"), _status("VmRSS")
    # Some systems take the number and keep the peak; other threads move both a little.
    return peak is not None and held is not None and peak - held < 2**24


def _status(key: str) -> int | None:
    """The bytes of a line of this process's status; None where there is none."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


@contextlib.contextmanager
def measured(workdir: pathlib.Path, stage: str) -> Iterator[None]:
    """Appends a line with what the block took, also where it fails; a kill -9 leaves no line.

    Where it fails, the stage's name in the line ends with ", stopped". Blocks must not be nested: each begins
    the peak of memory anew. It begins at what the process then holds, which includes what stages before it
    left. Where a system cannot reset it, the line says so (`peak_of` is "process", not "stage").
    """
    of_stage = reset_peak()
    wall, processor = time.monotonic(), processor_seconds()
    name = f"{stage}, stopped"
    try:
        yield
        name = stage
    finally:
        line = {
            "stage": name,
            "wall_seconds": round(time.monotonic() - wall, 1),
            "processor_seconds": round(processor_seconds() - processor, 1),
            "peak_memory_bytes": peak_bytes(),
            "peak_of": "stage" if of_stage else "process",
        }
        with (workdir / FILE).open("a") as file:
            file.write(json_text.dumps(line) + "\n")


def read(workdir: pathlib.Path) -> list[dict]:
    """All lines, oldest first."""
    path = workdir / FILE
    return [json_text.loads(x) for x in path.read_text().splitlines()] if path.exists() else []

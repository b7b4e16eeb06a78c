"""Keeping the host's large buffers mapped between steps.

XLA on a CPU takes its temporary memory from malloc once a step, and glibc gives so large a block
back to the system each time: the next step then waits for the kernel to clear it, page by page.
On two cores that was an eighth of the time of a training step with 1.5 GB of temporaries.
"""

import ctypes
import sys

# From <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_large_buffers() -> bool:
    """Tells glibc to keep what it once had; True where that worked, False on other systems."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {
        M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28, M_ARENA_MAX: 1,
    }  # fmt: skip
    return all([mallopt(name, value) == 1 for name, value in settings.items()])

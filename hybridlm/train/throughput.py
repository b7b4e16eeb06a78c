"""Measures speed: step times, tokens per second, MFU, and the share of time waiting for data."""

import collections
import contextlib
import time
from collections.abc import Iterator

import jax
import numpy as np

from hybridlm.models.accounting import Work

# Dense bfloat16 peak of one device, FLOP/s, from the vendors' data sheets.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(devices: list[jax.Device]) -> tuple[float | None, str]:
    """Peak FLOP/s of all devices together, and the source of the figure.

    It is None on a CPU and for a device that is not in `PEAKS`. A CPU's has no data sheet, and a
    measured one depends on what else the machine does: figures of one machine differed ninefold.
    """
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        return None, "no peak of a CPU is known"
    names = [name for name in PEAKS if kind.startswith(name)]
    if not names:
        return None, f"no peak known for {kind}"
    return PEAKS[max(names, key=len)] * len(devices), f"data sheet, {len(devices)} x {kind}"


class StepClock:
    """Times the last `window` steps, without the time in `paused`."""

    def __init__(self, tokens: int, flops: float, peak: float | None, window: int = 200):
        """Starts the clock.

        Args:
          tokens, flops: of one step, padding included.
          peak: FLOP/s of all devices; None if unknown.
          window: steps over which `summary` averages.
        """
        self.tokens, self.flops, self.peak = tokens, flops, peak
        self._times: collections.deque[float] = collections.deque(maxlen=window)
        self._waits: collections.deque[float] = collections.deque(maxlen=window)
        self._work: collections.deque[Work] = collections.deque(maxlen=window)
        self._start = time.perf_counter()
        self._excluded = self._wait = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in this context (an evaluation, a save) is not counted in a step."""
        start = time.perf_counter()
        yield
        self._excluded += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in this context counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._wait += time.perf_counter() - start

    def tick(self, work: Work = Work(0, 0.0)) -> None:
        """Ends a step, in which this host's rows took `work`."""
        now = time.perf_counter()
        self._times.append(now - self._start - self._excluded)
        self._waits.append(self._wait)
        self._work.append(work)
        self._start, self._excluded, self._wait = now, 0.0, 0.0

    def restart(self) -> None:
        """Drops the time since the last step, e.g. of compilation."""
        self._start, self._excluded, self._wait = time.perf_counter(), 0.0, 0.0

    @property
    def work(self) -> Work:
        """Of this host's rows, in all steps that `summary` averages over."""
        return Work(sum(w.tokens for w in self._work), sum(w.flops for w in self._work))

    def summary(self, work: Work | None = None) -> dict[str, float]:
        """Seconds per step (median and 90th percentile), tokens/s, MFU and data-wait share.

        Args:
          work: `self.work`, summed over hosts; adds `real_tokens_per_second` and `real_mfu`, which
            count documents only. The other figures count every position of a batch.
        """
        if not self._times:
            return {}
        times = np.array(self._times)
        mean = float(times.mean())
        figures = {
            "step_seconds_p50": float(np.median(times)),
            "step_seconds_p90": float(np.quantile(times, 0.9)),
            "tokens_per_second": self.tokens / mean,
            "data_wait_share": float(sum(self._waits)) / float(times.sum()),
        }
        if self.peak:
            figures["mfu"] = self.flops / mean / self.peak
        if work is not None:
            seconds = float(times.sum())
            figures["real_tokens_per_second"] = work.tokens / seconds
            if self.peak:
                figures["real_mfu"] = work.flops / seconds / self.peak
        return figures


def memory_in_use() -> int | None:
    """Bytes in use on the first local device, or by this process on a CPU; None if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats.get("bytes_in_use")
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
    return None

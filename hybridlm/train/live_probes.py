"""Probes of a model while it trains, for the config's section `probes`."""

import pathlib
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from hybridlm.models.dtypes import compute_dtype
from hybridlm.models.params import Model, Params
from hybridlm.parallel import hosts
from hybridlm.parallel.mesh import make_mesh
from hybridlm.parallel.settings import MeshConfig
from hybridlm.probes import registry
from hybridlm.probes.needles import needle_prompts
from hybridlm.probes.settings import ProbesConfig
from hybridlm.probes.table import FILE, NOT_FINITE, Table
from hybridlm.runs import metrics
from hybridlm.train import setup
from hybridlm.train.loop import Callback, NoCallback
from hybridlm.train.settings import Config


def live_probes(config: Config) -> Callback:
    """What `config.probes` asks for; the prompts are drawn at once, and touch no device.

    Raises:
      UserError: where the prompts do not fit.
    """
    if not config.probes.which:
        return NoCallback()
    return LiveProbes(config) if jax.process_count() == 1 else FirstHostProbes(config)


class LiveProbes:
    """Writes `probes.jsonl`, and says what the probes cost.

    Records are those of `hybridlm probe` ("retrieval_heads" and "entropy" of every attention head,
    "slot_share"), and one of kind "cost" each time: `seconds`, and `share`, the part that probes
    took of the time since the first was done. That one compiles, so its share is None.
    """

    def __init__(self, config: Config):
        self.settings: ProbesConfig = config.probes
        self.steps = config.train.steps
        resolved, tokenizer = setup.resolve(config)
        self.model = Model.of(resolved.model)
        self.length = config.probes.length or config.data.seq_len
        self.prompts, _ = needle_prompts(tokenizer, self.length, config.probes.samples, config.seed)
        dtype = compute_dtype(resolved.train.dtype)
        self.options: dict[str, Any] = dict(batch=config.probes.samples, dtype=dtype)
        self.probes = registry.live_probes(config.probes)
        self.spent = 0.0
        self.first_done: float | None = None

    def begin(self, path: pathlib.Path, step: int) -> bool:
        # The record of the cost is a step's last: without it, the others are not complete.
        records = metrics.read(path / FILE)
        complete = any(r["kind"] == "cost" and r["step"] == step for r in records)
        metrics.cut_back(path / FILE, step if complete else step - 1)
        self.writer = metrics.JsonlWriter(path / FILE)
        return self.due(step) and not complete

    def due(self, step: int) -> bool:
        return step % self.settings.interval == 0 or step == self.steps

    def on_step(self, step: int, params: Params) -> str:
        start = time.perf_counter()
        tables = self._tables(step, params)
        for record in (r for found in tables for table in found for r in table.records(step)):
            self.writer.write({**record, "length": self.length})
        now = time.perf_counter()
        share = self._share(now - start, now)
        self.writer.write({"kind": "cost", "step": step, "seconds": now - start, "share": share})
        self.writer.flush()
        cost = "compiled now" if share is None else f"{share:.2%} of training time"
        return f"probes at step {step}: {self._headline(tables)}; {now - start:.2f}s, {cost}"

    def close(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()

    def _tables(self, step: int, params: Params) -> list[list[Table[Any]]]:
        """Of each probe."""
        return [list(probe.run(self, step, params)) for probe in self.probes]

    def _headline(self, tables: list[list[Table[Any]]]) -> str:
        if any(table.broken() for found in tables for table in found):
            return NOT_FINITE
        parts = [part for probe, found in zip(self.probes, tables) for part in probe.live(found)]
        return ", ".join(parts) or "nothing to measure in this model"

    def _share(self, seconds: float, now: float) -> float | None:
        if self.first_done is None:
            self.first_done = now
            return None
        self.spent += seconds
        return self.spent / (now - self.first_done)


class FirstHostProbes(LiveProbes):
    """The same on many hosts: host 0 runs the probes on one device, on parameters gathered from all.

    The device must have room for the whole model.
    """

    def begin(self, path: pathlib.Path, step: int) -> bool:
        return hosts.is_first() and super().begin(path, step)

    def on_step(self, step: int, params: Params) -> str:
        if hosts.is_first():
            return super().on_step(step, params)
        _gathered(params)
        return ""

    def _tables(self, step: int, params: Params) -> list[list[Table[Any]]]:
        params = _gathered(params)
        with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
            return super()._tables(step, params)


def _gathered(params: Params) -> Params:
    """Whole on every host, in its memory; one after the other, so that a device has but one whole."""
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), params)

"""Probes of a model while it trains, for the config's section `probes`."""

import pathlib
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from hybridlm import probes
from hybridlm.models.dtypes import compute_dtype
from hybridlm.models.params import Model, Params
from hybridlm.parallel import hosts
from hybridlm.parallel.mesh import make_mesh
from hybridlm.parallel.settings import MeshConfig
from hybridlm.probes.settings import ProbesConfig
from hybridlm.probes.suite import FILE, needle_prompts
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
        self.config = resolved
        self.length = config.probes.length or config.data.seq_len
        self.prompts, _ = needle_prompts(tokenizer, self.length, config.probes.samples, config.seed)
        self.spent = 0.0
        self.first_done: float | None = None

    def begin(self, path: pathlib.Path, step: int) -> None:
        metrics.cut_back(path / FILE, step)
        self.writer = metrics.JsonlWriter(path / FILE)

    def due(self, step: int) -> bool:
        return step % self.settings.interval == 0 or step == self.steps

    def on_step(self, step: int, params: Params) -> str:
        start = time.perf_counter()
        tables = self._tables(params)
        for record in (r for table in tables for r in table.records(step)):
            self.writer.write({**record, "length": self.length})
        now = time.perf_counter()
        share = self._share(now - start, now)
        self.writer.write({"kind": "cost", "step": step, "seconds": now - start, "share": share})
        self.writer.flush()
        cost = "compiled now" if share is None else f"{share:.2%} of training time"
        return f"probes at step {step}: {_headline(tables)}; {now - start:.2f}s, {cost}"

    def close(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()

    def _tables(self, params: Params) -> list[probes.Table[Any]]:
        dtype = compute_dtype(self.config.train.dtype)
        options = dict(batch=self.settings.samples, dtype=dtype)
        tables: list[probes.Table[Any]] = []
        if "heads" in self.settings.which:
            tables += probes.heads_at_once(self.model, params, self.prompts, **options)
        if "slot_share" in self.settings.which:
            tables.append(probes.slot_share(self.model, params, self.prompts, **options))
        return tables

    def _share(self, seconds: float, now: float) -> float | None:
        if self.first_done is None:
            self.first_done = now
            return None
        self.spent += seconds
        return self.spent / (now - self.first_done)


class FirstHostProbes(LiveProbes):
    """The same on many hosts: all of them give their parts of the parameters, the first looks.

    It does so on one of its devices, which must have room for the whole model.
    """

    def begin(self, path: pathlib.Path, step: int) -> None:
        if hosts.is_first():
            super().begin(path, step)

    def on_step(self, step: int, params: Params) -> str:
        if hosts.is_first():
            return super().on_step(step, params)
        _gathered(params)
        return ""

    def _tables(self, params: Params) -> list[probes.Table[Any]]:
        params = _gathered(params)
        with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
            return super()._tables(params)


def _gathered(params: Params) -> Params:
    """Whole on every host, in its memory; one after the other, so that a device has but one whole."""
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), params)


def _headline(tables: list[probes.Table[Any]]) -> str:
    parts = []
    for table in tables:
        if table.probe == "retrieval_heads" and len(table):
            for by in ("mass", "copy"):
                best = max(table, key=lambda e, by=by: getattr(e, by))
                parts.append(f"best {by} {getattr(best, by):.3f} (head {best.layer}.{best.head})")
        if table.probe == "entropy" and len(table):
            parts.append(f"least entropy {min(e.entropy for e in table):.3f}")
        if table.probe == "slot_share" and len(table):
            parts.append(f"slots {sum(e.share for e in table) / len(table):.3f}")
    return ", ".join(parts) or "nothing to measure in this model"

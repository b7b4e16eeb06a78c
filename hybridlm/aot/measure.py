"""Compiles one training step and measures its memory, work and bounds per chip."""

import math
import re
import time
from typing import Any, NamedTuple

import jax

from hybridlm.aot import hlo
from hybridlm.aot.topology import CompileTarget
from hybridlm.data import open_tokenizer
from hybridlm.progress import doing
from hybridlm.train import setup
from hybridlm.train.settings import Config
from kernels_pallas import dispatch


class Memory(NamedTuple):
    """Bytes of HBM on each chip.

    Attributes:
      parameters, optimizer, batch: shards of the arguments; `optimizer` includes the step, the
        guard's statistics and the moving average.
      padding: added by the chip's memory layouts.
      temporaries: activations kept for the backward pass, gradients and intermediate results; the
        compiler allocates them together and reports one figure.
      outputs: results that do not reuse an argument's buffer.
      program: the code.
    """

    parameters: float
    optimizer: float
    batch: float
    padding: float
    temporaries: float
    outputs: float
    program: float

    @property
    def total(self) -> float:
        return sum(self)


class Roofline(NamedTuple):
    """Lower bounds on the seconds of a step, from the peaks of the data sheet for each resource."""

    compute: float
    hbm: float
    interconnect: float

    @property
    def limit(self) -> str:
        """The name of the largest bound."""
        return max(zip(self, self._fields))[1]


class Compiled(NamedTuple):
    """A compiled step and its figures.

    Attributes:
      cost: of one chip, read from the compiled program.
      model_flops: of the whole step by the model's own formulas, without recomputation.
      lower_seconds, compile_seconds: of tracing and of compiling on this machine.
    """

    step: jax.stages.Compiled
    lowered: setup.LoweredStep
    memory: Memory
    cost: hlo.ProgramCost
    roofline: Roofline
    model_flops: float
    lower_seconds: float
    compile_seconds: float


class TooLarge(NamedTuple):
    """A step that the compiler rejected because it needs too much HBM.

    Attributes:
      state: bytes of parameters, optimizer and batch on each chip.
      temporaries: bytes needed for all else; None if the compiler's message does not state it.
      available: bytes of HBM; None if the message does not state it.
      reason: the compiler's message.
    """

    state: float
    temporaries: float | None
    available: float | None
    reason: str
    compile_seconds: float

    @property
    def total(self) -> float | None:
        return None if self.temporaries is None else self.state + self.temporaries


def compile_step(config: Config, target: CompileTarget) -> Compiled | TooLarge:
    """Compiles the training step of a resolved `config` as `hybridlm train` would on `target`.

    Raises:
      ConfigError: if the mesh does not divide the batch, the length or the parameters, and where
        the compiler refuses one of `train.compiler_options`.
    """
    token_bytes_V = open_tokenizer(config.data.tokenizer).token_bytes()
    start = time.perf_counter()
    device = target.devices[0]
    tracing = doing("tracing and lowering the training step")
    with tracing, dispatch.kernels_for(device.platform, chip=device.device_kind):
        lowered = setup.lower_step(config, token_bytes_V, target.devices)
    lower_seconds = time.perf_counter() - start
    parameters = _shard_bytes(lowered.abstract["params"])
    optimizer = _shard_bytes(lowered.abstract) - parameters
    batch = _shard_bytes(setup.abstract_batch(config, lowered.mesh, lowered.teacher))
    start = time.perf_counter()
    try:
        with doing(f"compiling the training step for {target.name}"):
            step = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in reason or "hbm" not in reason.lower():
            raise
        seconds = time.perf_counter() - start
        return too_large(reason, parameters + optimizer + batch, seconds)
    seconds = time.perf_counter() - start
    sizes = step.memory_analysis()
    memory = Memory(
        parameters,
        optimizer,
        batch,
        sizes.argument_size_in_bytes - parameters - optimizer - batch,
        sizes.temp_size_in_bytes,
        sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        sizes.generated_code_size_in_bytes,
    )
    with doing("reading the compiled program"):
        cost = hlo.read(step.as_text())
    roofline = Roofline(
        cost.flops / target.flops,
        cost.hbm_bytes / target.bandwidth,
        sum(c.sent for c in cost.collectives.values()) / target.interconnect,
    )
    flops = setup.costs(config, lowered.model)[0] * config.tokens_per_step
    return Compiled(step, lowered, memory, cost, roofline, flops, lower_seconds, seconds)


def too_large(reason: str, state: float, seconds: float) -> TooLarge:
    """Reads the compiler's message, which states the size of the temporaries or the total."""
    temporaries = re.search(
        r"temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", reason
    )
    if temporaries:
        needed, available = map(_size, temporaries.groups())
        return TooLarge(state, needed, available, reason[:400], seconds)
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", reason)
    if used:
        needed, available = map(_size, used.groups())
        return TooLarge(state, needed - state, available, reason[:400], seconds)
    return TooLarge(state, None, None, reason[:400], seconds)


def _size(text: str) -> float:
    """Bytes of a size in the compiler's message, e.g. "30.34G"."""
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1])
    return float(text[:-1]) * 2**unit if unit else float(text.rstrip("B"))


def _shard_bytes(tree: Any) -> float:
    """Bytes on each device."""
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
    )

"""One compiled training step: what it needs of each chip, and what it does there."""

import math
import re
import time
from typing import Any, NamedTuple

import jax

from hybridlm.aot import hlo
from hybridlm.aot.topology import Target
from hybridlm.data import open_tokenizer
from hybridlm.models.accounting import train_flops_per_token
from hybridlm.train import setup
from hybridlm.train.settings import Config
from kernels_pallas import dispatch


class Memory(NamedTuple):
    """Bytes of HBM on each chip.

    Attributes:
      parameters, optimizer, batch: the arguments' shards; the optimizer's with the step and the
        guard's statistics.
      padding: what the chip's layouts add to them.
      temporaries: activations kept for the backward pass, gradients and what comes and goes: the
        compiler lays them out together and does not tell them apart.
      outputs: results that no argument's buffer takes. program: the code.
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
    """Seconds of a step that no chip of the data sheet can undercut, were each the only limit."""

    compute: float
    hbm: float
    interconnect: float

    @property
    def limit(self) -> str:
        """The name of the largest."""
        return max(zip(self, self._fields))[1]


class Compiled(NamedTuple):
    """A step that the compiler took.

    Attributes:
      lower_seconds, compile_seconds: what tracing it, and compiling it, took here.
      model_flops: of the whole step by the model's own formulas, recomputation not counted.
    """

    step: jax.stages.Compiled
    lowered: setup.LoweredStep
    memory: Memory
    program: hlo.Program
    roofline: Roofline
    model_flops: float
    lower_seconds: float
    compile_seconds: float


class TooLarge(NamedTuple):
    """A step that the compiler refused for want of HBM.

    Attributes:
      state: bytes of parameters, optimizer and batch on each chip.
      temporaries: bytes that it wanted for the rest, or None where it did not say.
      available: bytes that it has. reason: its own words.
    """

    state: float
    temporaries: float | None
    available: float | None
    reason: str
    compile_seconds: float

    @property
    def total(self) -> float | None:
        return None if self.temporaries is None else self.state + self.temporaries


def compile_step(config: Config, target: Target) -> Compiled | TooLarge:
    """Compiles the training step of a resolved `config` as `hybridlm train` would on `target`.

    Raises:
      ConfigError: where the mesh, the batch and the parameters do not divide.
    """
    token_bytes_V = open_tokenizer(config.data.tokenizer).token_bytes()
    start = time.perf_counter()
    with dispatch.kernels_for(target.devices[0].platform):
        lowered = setup.lower_step(config, token_bytes_V, target.devices)
    lower_seconds = time.perf_counter() - start
    parameters = _shard_bytes(lowered.abstract["params"])
    optimizer = _shard_bytes(lowered.abstract) - parameters
    batch = _shard_bytes(setup.abstract_batch(config, lowered.mesh))
    start = time.perf_counter()
    try:
        step = lowered.step.compile()
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
    program = hlo.read(step.as_text())
    roofline = Roofline(
        program.flops / target.flops,
        program.hbm_bytes / target.bandwidth,
        sum(c.sent for c in program.collectives.values()) / target.interconnect,
    )
    flops = train_flops_per_token(lowered.model, config.data.seq_len) * config.tokens_per_step
    return Compiled(step, lowered, memory, program, roofline, flops, lower_seconds, seconds)


def too_large(reason: str, state: float, seconds: float) -> TooLarge:
    """Reads the compiler's refusal: it says what the temporaries want, or what all wants."""
    temporaries = re.search(
        r"temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", reason
    )
    if temporaries:
        wanted, available = map(_size, temporaries.groups())
        return TooLarge(state, wanted, available, reason[:400], seconds)
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", reason)
    if used:
        wanted, available = map(_size, used.groups())
        return TooLarge(state, wanted - state, available, reason[:400], seconds)
    return TooLarge(state, None, None, reason[:400], seconds)


def _size(text: str) -> float:
    """Bytes of the compiler's "30.34G"."""
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

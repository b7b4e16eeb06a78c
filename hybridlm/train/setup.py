"""From a config to everything the loop needs: data, mesh, compiled steps and the state to start."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybridlm.data import Pipeline, Tokenizer, open_pipeline, open_tokenizer
from hybridlm.errors import RunError
from hybridlm.evals.perplexity import make_eval_step
from hybridlm.models.accounting import train_flops_per_token, with_vocab
from hybridlm.models.dtypes import compute_dtype
from hybridlm.models.params import Model
from hybridlm.parallel import hosts
from hybridlm.parallel import mesh as meshes
from hybridlm.runs import checkpoint, metrics
from hybridlm.runs.checkpoint import Checkpoints
from hybridlm.train import host_memory
from hybridlm.train.optimizer import make_optimizer
from hybridlm.train.settings import Config
from hybridlm.train.state import TrainState, abstract_state, init_state
from hybridlm.train.step import make_train_step


def resolve(config: Config) -> tuple[Config, Tokenizer]:
    """The config with its vocabulary size filled in, and its tokenizer; touches no device."""
    tokenizer = open_tokenizer(config.data.tokenizer)
    model = with_vocab(config.model, tokenizer.vocab_size)
    return dataclasses.replace(config, model=model), tokenizer


def check_divides(config: Config, shape: Sequence[int]) -> None:
    """Refuses a batch, a length and heads that a mesh of `shape` cannot split evenly.

    Raises:
      ConfigError: naming `data.batch_size`, `data.seq_len` or a mixer's setting.
    """
    data, model, parts = config.data, config.model, config.train.accumulate
    rows = meshes.ShardedSize(
        "data.batch_size", data.batch_size, "batch", "data x fsdp x accumulate", parts
    )
    splits = [rows, meshes.ShardedSize("data.seq_len", data.seq_len, "time", "context")]
    for name, mixer in dict(model.layer_mixers()).items():
        for setting, count in mixer.head_counts(model.width).items():
            splits.append(
                meshes.ShardedSize(f"model.mixers.{name}.{setting}", count, "heads", "tensor")
            )
    meshes.check_divides(splits, shape)


@dataclasses.dataclass(frozen=True)
class Program:
    """A model's compiled training step on a mesh, and what belongs to it.

    Attributes:
      abstract: the train state's shapes, dtypes and shardings.
      train_step: (state, batch) -> (state, metrics); donates the state.
      eval_step: (params, batch) -> sums by position; compiled when first called, which must be
        under `jax.set_mesh(mesh)`.
      init: key -> fresh state, placed as `abstract` says; as `eval_step`.
      flops_per_step: model FLOPs of forward and backward.
      compile_seconds: what compiling `train_step` took.
    """

    model: Model
    mesh: jax.sharding.Mesh
    abstract: TrainState
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    eval_step: Callable[[Any, Any], dict[str, jax.Array]]
    init: Callable[[jax.Array], TrainState]
    flops_per_step: float
    compile_seconds: float


class LoweredStep(NamedTuple):
    """The training step on a mesh, not compiled yet, and what it is made of.

    Attributes:
      abstract: the train state's shapes, dtypes and shardings.
      token_bytes_V: with zeros for what the vocabulary has besides the tokenizer's tokens.
      dtype: of activations.
      step: (state, batch) -> (state, metrics); donates the state.
    """

    model: Model
    optimizer: optax.GradientTransformation
    mesh: jax.sharding.Mesh
    abstract: TrainState
    token_bytes_V: np.ndarray
    dtype: jnp.dtype
    step: jax.stages.Lowered

    @property
    def shardings(self) -> TrainState:
        """Of the train state."""
        return jax.tree.map(lambda x: x.sharding, self.abstract)


def lower_step(
    config: Config, token_bytes_V: np.ndarray, devices: Sequence[jax.Device]
) -> LoweredStep:
    """The training step of `config` for `devices`, which need not be there.

    Args:
      config: with its vocabulary size filled in.
      token_bytes_V: bytes that each token stands for, as `Tokenizer.token_bytes` gives them.

    Raises:
      ConfigError: where the mesh, the batch and the parameters do not divide.
    """
    check_divides(config, meshes.mesh_shape(config.mesh, len(devices)))
    mesh = meshes.make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        model = Model.of(config.model)
        optimizer = make_optimizer(config.optimizer, model.decay, model.muon)
        abstract = abstract_state(model, optimizer, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        token_bytes_V = _padded(token_bytes_V, config.model.vocab_size)
        dtype = compute_dtype(config.train.dtype, devices[0].platform)
        step = make_train_step(
            model, optimizer, config.train, config.optimizer, token_bytes_V, dtype
        )
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, meshes.replicated(mesh)))
        lowered = jitted.lower(abstract, abstract_batch(config, mesh))
        return LoweredStep(model, optimizer, mesh, abstract, token_bytes_V, dtype, lowered)


def compile_program(config: Config, token_bytes_V: np.ndarray) -> Program:
    """Makes the mesh and compiles the training step of `config` for the devices at hand.

    Args:
      config: with its vocabulary size filled in.
      token_bytes_V: bytes that each token stands for, as `Tokenizer.token_bytes` gives them.

    Raises:
      ConfigError: where the mesh, the batch and the parameters do not divide.
    """
    devices = _devices()
    start = time.perf_counter()
    lowered = lower_step(config, token_bytes_V, devices)
    model, optimizer, mesh = lowered.model, lowered.optimizer, lowered.mesh
    train_step = lowered.step.compile()
    if devices[0].platform == "cpu":
        temporaries = train_step.memory_analysis().temp_size_in_bytes
        host_memory.reserve_huge_pages(2 * temporaries)
    return Program(
        model=model,
        mesh=mesh,
        abstract=lowered.abstract,
        train_step=train_step,
        eval_step=jax.jit(
            make_eval_step(model, lowered.token_bytes_V, lowered.dtype),
            out_shardings=meshes.replicated(mesh),
        ),
        init=jax.jit(
            lambda key: init_state(model, optimizer, key), out_shardings=lowered.shardings
        ),
        flops_per_step=train_flops_per_token(model, config.data.seq_len) * config.tokens_per_step,
        compile_seconds=time.perf_counter() - start,
    )


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A run ready to go on: `state` is that of `start_step`, fresh or restored."""

    config: Config
    pipeline: Pipeline
    program: Program
    checkpoints: Checkpoints
    start_step: int
    state: TrainState
    rows: hosts.Rows

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows of every batch from the next step on, (rows, time)."""
        return self.pipeline.iterate(self.start_step, self.rows.indices)

    def device_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A training batch on the mesh, (accumulate, micro-batch, time), of the hosts' rows."""
        return self.rows.arrays(batch)

    def heldout(self) -> list[dict[str, jax.Array]]:
        """The batches of one evaluation, (batch, time) on the mesh."""
        rows = self.config.data.batch_size // self.config.train.accumulate
        sharding = meshes.sharding(self.program.mesh, ("batch", "time"))
        batches = self.pipeline.heldout_batches(rows, self.config.train.eval_sequences)
        return [{k: hosts.global_array(v, sharding) for k, v in batch.items()} for batch in batches]


def build(config: Config, workdir: pathlib.Path) -> Trainer:
    """Reads the data, compiles the steps, and makes or restores the state.

    Raises:
      UserError: for a mesh or data that do not fit, and where the run there read other data.
    """
    check_divides(config, meshes.mesh_shape(config.mesh, len(_devices())))

    def open_data() -> Pipeline:
        pipeline = open_pipeline(config.data, seed=config.seed, workdir=workdir)
        _check_same_data(pipeline, workdir)
        return pipeline

    pipeline = hosts.in_turn("reading the data", open_data)
    program = compile_program(config, pipeline.tokenizer.token_bytes())
    rows = hosts.Rows.of(meshes.batch_sharding(program.mesh), batch_shape(config))
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints, config.train.keep_every)
    start_step = checkpoints.latest_step or 0
    with hosts.fail_together("opening the checkpoint"):
        if start_step:
            state = checkpoints.restore(program.abstract)
        else:
            with jax.set_mesh(program.mesh):
                state = program.init(jax.random.key(config.seed))
    return Trainer(config, pipeline, program, checkpoints, start_step, state, rows)


def _devices() -> list[jax.Device]:
    """All devices. CPUs' threads are told how to allocate as soon as they are there."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        host_memory.keep_large_buffers()
    return devices


def _check_same_data(pipeline: Pipeline, workdir: pathlib.Path) -> None:
    """Holds a run that goes on to the tokenizer and the tokens that it began with."""
    records = metrics.read(workdir / metrics.FILE) if checkpoint.steps(workdir) else []
    before = next((r["data"] for r in records if r["kind"] == "run"), None)
    if before is None:
        return
    now = pipeline.counts()
    changed = [
        f"data.sources.{name}"
        for name, source in now["sources"].items()
        if before["sources"].get(name, {}).get("sha256") != source["sha256"]
    ]
    if changed:
        raise RunError(
            f"the text, tokenizer or token shards of {', '.join(changed)} are not those that the"
            f" run in {workdir} began with: put them back, or use another --workdir"
        )


def batch_shape(config: Config) -> tuple[int, int, int]:
    """(accumulate, micro-batch, time) of a step's batch, over all hosts."""
    parts = config.train.accumulate
    return (parts, config.data.batch_size // parts, config.data.seq_len)


def abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a training batch on the mesh."""
    shape = batch_shape(config)
    sharding = meshes.batch_sharding(mesh)
    names = ("tokens", "targets", "segment_ids", "positions")
    batch = {n: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for n in names}
    return {**batch, "loss_weights": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)}


def _padded(token_bytes_V: np.ndarray, vocab_size: int) -> np.ndarray:
    padding = vocab_size - len(token_bytes_V)
    return np.pad(token_bytes_V, (0, padding)).astype(np.float32)

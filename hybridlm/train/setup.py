"""Builds what the loop uses from a config: data, mesh, compiled steps and the first state."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybridlm.data import Pipeline, Tokenizer, open_pipeline, open_tokenizer
from hybridlm.distill.cost import distillation_cost
from hybridlm.errors import ConfigError, RunError
from hybridlm.evals.perplexity import make_eval_step
from hybridlm.models.accounting import (
    Work,
    counter_of,
    train_flops_per_token,
    with_vocab,
    work_counter,
)
from hybridlm.models.dtypes import compute_dtype
from hybridlm.models.params import Model, Params
from hybridlm.models.trainable import Trainable
from hybridlm.parallel import gradients, hosts
from hybridlm.parallel import mesh as meshes
from hybridlm.progress import doing
from hybridlm.runs import checkpoint, metrics
from hybridlm.runs import lineage as lineages
from hybridlm.runs.checkpoint import Checkpoints
from hybridlm.runs.lineage import Origin
from hybridlm.train import host_memory
from hybridlm.train import teacher as teachers
from hybridlm.train.blockwise_step import make_blockwise_step
from hybridlm.train.init_from import start_state
from hybridlm.train.init_plan import Plan
from hybridlm.train.optimizer import ScheduleNumbers, optimizer_of
from hybridlm.train.settings import CompilerOption, CompilerOptions, Config
from hybridlm.train.state import TrainState, abstract_state, init_state
from hybridlm.train.step import make_train_step


def resolve(config: Config) -> tuple[Config, Tokenizer]:
    """The config with its vocabulary size filled in, and its tokenizer; uses no device.

    Raises:
      UserError: where the optimizer's settings name parameters that the model has not, or the
        teacher does not fit.
    """
    tokenizer = open_tokenizer(config.data.tokenizer)
    model = with_vocab(config.model, tokenizer.vocab_size)
    if config.teacher is not None:
        config = teachers.resolve(dataclasses.replace(config, model=model), tokenizer)
    if config.optimizer.freeze or config.optimizer.lr_multipliers:
        optimizer_of(config.optimizer, Model.of(model))
    return dataclasses.replace(config, model=model), tokenizer


def check_divides(config: Config, shape: Sequence[int]) -> None:
    """Checks that a mesh of `shape` splits the batch, the length and the heads evenly.

    Raises:
      ConfigError: naming `data.batch_size`, `data.seq_len` or a mixer's setting.
    """
    data, model, parts = config.data, config.model, config.train.accumulate
    rows = meshes.ShardedSize(
        "data.batch_size", data.batch_size, "batch", "data x fsdp x expert x accumulate", parts
    )
    splits = [rows, meshes.ShardedSize("data.seq_len", data.seq_len, "time", "context")]
    models = {"model": model}
    if config.teacher is not None and config.teacher.model is not None:
        models["teacher.model"] = config.teacher.model
    for where, one in models.items():
        for name, mixer in dict(one.layer_mixers()).items():
            for setting, count in mixer.head_counts(one.width).items():
                splits.append(
                    meshes.ShardedSize(f"{where}.mixers.{name}.{setting}", count, "heads", "tensor")
                )
    meshes.check_divides(splits, shape)


# How XLA's messages about unknown options and their values begin.
_REFUSED = ("No such compile option", "While setting option", "Failed to parse")


class LoweredStep(NamedTuple):
    """The training step, traced and lowered for a mesh, with what evaluation and start need.

    Attributes:
      model: with its vocabulary size filled in.
      optimizer: of `config.optimizer`.
      trainable: the parameters that it updates.
      mesh: its devices may be described only, and not attached.
      abstract: the train state's shapes, dtypes and shardings.
      token_bytes_V: float32; 0 for ids beyond the tokenizer's own.
      dtype: of activations.
      step: (state, batch) -> (state, metrics); donates the state.
      options: `train.compiler_options` of the devices' platform.
      teacher: the model that the run learns from, if there is one.
    """

    model: Model
    optimizer: optax.GradientTransformation
    trainable: Trainable
    mesh: jax.sharding.Mesh
    abstract: TrainState
    token_bytes_V: np.ndarray
    dtype: jnp.dtype
    step: jax.stages.Lowered
    options: Mapping[str, CompilerOption]
    teacher: Model | None = None

    def compile(self) -> jax.stages.Compiled:
        """Compiles the step with its options.

        Raises:
          ConfigError: where the compiler refuses an option.
        """
        try:
            return self.step.compile(compiler_options=dict(self.options) or None)
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).partition("INVALID_ARGUMENT: ")[2].strip(" :\n")
            if not self.options or not reason.startswith(_REFUSED):
                raise
            field = CompilerOptions.field(self.mesh.devices.flat[0].platform)
            raise ConfigError(
                f"train.compiler_options.{field} is refused by the compiler: {reason}"
            ) from error

    def eval_step(self) -> Callable[[Params, Any], dict[str, jax.Array]]:
        """(params, batch) -> sums by position; compiles at its first call.

        That call must be made under `jax.set_mesh(mesh)`.
        """
        step = make_eval_step(self.model, self.token_bytes_V, self.dtype)
        return jax.jit(step, out_shardings=meshes.replicated(self.mesh))

    def init_state(self, seed: int) -> TrainState:
        """A fresh state, placed as `abstract` says."""
        init = jax.jit(
            lambda key: init_state(
                self.model, self.optimizer, key, self.trainable, "ema" in self.abstract
            ),
            out_shardings=jax.tree.map(lambda x: x.sharding, self.abstract),
        )
        with jax.set_mesh(self.mesh):
            return init(jax.random.key(seed))


def lower_step(
    config: Config, token_bytes_V: np.ndarray, devices: Sequence[jax.Device]
) -> LoweredStep:
    """Traces and lowers the training step of `config` for `devices`.

    Args:
      config: with its vocabulary size filled in.
      token_bytes_V: bytes of each token's text, from `Tokenizer.token_bytes`.
      devices: attached ones, or ones that are described only (see `hybridlm.aot.topology`).

    Raises:
      ConfigError: where the mesh does not divide the batch, the length or the parameters.
    """
    check_divides(config, meshes.mesh_shape(config.mesh, len(devices)))
    mesh = meshes.make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        model = Model.of(config.model)
        trainable, optimizer = optimizer_of(config.optimizer, model)
        ema = config.train.ema_decay is not None
        abstract = abstract_state(model, optimizer, mesh, trainable, ema)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        token_bytes_V = _padded(token_bytes_V, config.model.vocab_size)
        dtype = compute_dtype(config.train.dtype, devices[0].platform)
        teacher = teachers.model_of(config)
        if teacher is not None and config.teacher.objective == "blockwise":
            step = make_blockwise_step(
                model, teacher, optimizer, config.train, config.optimizer, dtype
            )
        else:
            divergence = teachers.divergence_of(config, teacher)
            step = make_train_step(
                model, optimizer, config.train, config.optimizer, token_bytes_V, dtype, divergence
            )
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, meshes.replicated(mesh)))
        with gradients.sent_over(mesh, config.train.reduce_dtype):
            lowered = jitted.lower(abstract, abstract_batch(config, mesh, teacher))
        options = config.train.compiler_options.of(devices[0].platform)
        return LoweredStep(
            model,
            optimizer,
            trainable,
            mesh,
            abstract,
            token_bytes_V,
            dtype,
            lowered,
            options,
            teacher,
        )


def compile_lowered(lowered: LoweredStep) -> jax.stages.Compiled:
    """Compiles the step for attached devices; on CPUs, its temporaries get huge pages."""
    step = lowered.compile()
    if lowered.mesh.devices.flat[0].platform == "cpu":
        host_memory.reserve_huge_pages(2 * step.memory_analysis().temp_size_in_bytes)
    return step


class LoadedTeacher(NamedTuple):
    """The teacher of a run.

    Attributes:
      params: on the mesh.
      sha256: of the parameters.
      tokens_per_second: of its layers forward, measured at the run's first start; then None.
    """

    params: Params
    sha256: str
    tokens_per_second: float | None


@dataclasses.dataclass(frozen=True)
class Trainer:
    """All that the training loop uses: data, compiled steps, checkpoints and the first state.

    Attributes:
      train_step: (state, batch) -> (state, metrics); donates the state.
      eval_step: (params, batch) -> sums by position (see `LoweredStep.eval_step`).
      flops_per_step: model FLOPs of forward and backward, if every row were one document.
      count_work: the work that segment ids (rows, time) take.
      compile_seconds: of tracing and compiling `train_step`.
      start_step: the checkpoint's; in a new run 0, or the source's step with `init.keep_step`.
      state: after `start_step` steps, restored or fresh.
      lineage: of the run, nearest source first (see `hybridlm.runs.lineage`).
      is_begun: whether the run has a checkpoint; without one, its lineage is not on disk either.
      rows: the part of each batch that this host loads.
      schedule: of the learning rate, on the mesh.
      trainable: the parameters that are trained.
      teacher: its parameters on the mesh, hash and speed; None without one.
    """

    config: Config
    pipeline: Pipeline
    model: Model
    mesh: jax.sharding.Mesh
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    eval_step: Callable[[Params, Any], dict[str, jax.Array]]
    flops_per_step: float
    count_work: Callable[[np.ndarray], Work]
    compile_seconds: float
    checkpoints: Checkpoints
    start_step: int
    state: TrainState
    lineage: list[Origin]
    is_begun: bool
    rows: hosts.Rows
    schedule: ScheduleNumbers
    trainable: Trainable
    teacher: LoadedTeacher | None = None

    @property
    def first_step(self) -> int:
        """The step after which the run began: 0, or its source's with `init.keep_step`."""
        init = self.config.init
        return self.lineage[0].step if init is not None and init.keep_step else 0

    def averaged(self, state: TrainState) -> Params:
        """The parameters with their moving average in place of the trained ones."""
        params = state["params"]
        placed = jax.tree.map(lambda x: x.sharding, params)
        return jax.jit(self.trainable.put, out_shardings=placed)(params, state["ema"])

    def tokens(self, step: int) -> int:
        """Tokens trained on up to `step`, the source's with `init.keep_step` included."""
        per_step, init = self.config.tokens_per_step, self.config.init
        if init is None or not init.keep_step or self.lineage[0].tokens is None:
            return step * per_step
        source = self.lineage[0]
        return source.tokens + (step - source.step) * per_step

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows of each batch after `start_step`, (rows, time)."""
        return self.pipeline.iterate(self.start_step, self.rows.indices)

    def work(self, batch: dict[str, np.ndarray]) -> Work:
        """Of those of this host's rows that no other host counts."""
        return self.count_work(batch["segment_ids"][list(self.rows.own)])

    def device_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The training batch on the mesh, (accumulate, micro-batch, time), from hosts' rows."""
        taught = {} if self.teacher is None else {"teacher": self.teacher.params}
        return {**self.rows.arrays(batch), "schedule": self.schedule, **taught}

    def heldout(self) -> list[dict[str, jax.Array]]:
        """The batches of one evaluation, (batch, time) on the mesh."""
        rows = self.config.data.batch_size // self.config.train.accumulate
        sharding = meshes.sharding(self.mesh, ("batch", "time"))
        batches = self.pipeline.heldout_batches(rows, self.config.train.eval_sequences)
        return [{k: hosts.global_array(v, sharding) for k, v in batch.items()} for batch in batches]


def read_data(config: Config, workdir: pathlib.Path) -> Pipeline:
    """Opens the data; host 0 first, which tokenizes.

    Raises:
      UserError: for a mesh or data that do not fit, and where the run in `workdir` read other data.
    """
    check_divides(config, meshes.mesh_shape(config.mesh, len(_attached_devices())))

    def open_data() -> Pipeline:
        pipeline = open_pipeline(config.data, seed=config.seed, workdir=workdir)
        _check_same_data(pipeline, workdir)
        pipeline.check_epochs(config.train.steps)
        return pipeline

    with doing("reading the data"):
        return hosts.in_turn("reading the data", open_data)


def build(
    config: Config, workdir: pathlib.Path, pipeline: Pipeline, plan: Plan | None = None
) -> Trainer:
    """Compiles the training step, and restores or initialises the state.

    Args:
      pipeline: of `read_data`.
      plan: what a run that has no checkpoint takes from the source of its `init`.

    Raises:
      UserError: for a mesh that does not fit.
    """
    devices = _attached_devices()
    start = time.perf_counter()
    with doing("compiling the training step"):
        lowered = lower_step(config, pipeline.tokenizer.token_bytes(), devices)
        train_step = compile_lowered(lowered)
    compile_seconds = time.perf_counter() - start
    model, mesh = lowered.model, lowered.mesh
    rows = hosts.Rows.of(meshes.batch_sharding(mesh), batch_shape(config))
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints, config.train.keep_every)
    start_step, is_begun = checkpoints.latest_step or 0, checkpoints.latest_step is not None
    opening = (
        f"opening the checkpoint of step {start_step}" if is_begun else "making the first state"
    )
    with doing(opening), hosts.fail_together("opening the checkpoint"):
        lineage = lineages.read(workdir) if is_begun else []
        if is_begun:
            state = checkpoints.restore(lowered.abstract)
        else:
            state = lowered.init_state(config.seed)
            if plan is not None:
                state, lineage = start_state(plan, state)
                start_step = lineage[0].step if config.init.keep_step else 0
    teacher = None
    if lowered.teacher is not None:
        with doing("opening the teacher"), hosts.fail_together("opening the teacher"):
            teacher = _open_teacher(config, lowered, workdir, measured=is_begun)
    flops_per_token, count_work = costs(config, model)
    return Trainer(
        config=config,
        pipeline=pipeline,
        model=model,
        mesh=mesh,
        train_step=train_step,
        eval_step=lowered.eval_step(),
        flops_per_step=flops_per_token * config.tokens_per_step,
        count_work=count_work,
        compile_seconds=compile_seconds,
        checkpoints=checkpoints,
        start_step=start_step,
        state=state,
        lineage=lineage,
        is_begun=is_begun,
        rows=rows,
        schedule=placed_schedule(config, mesh),
        trainable=lowered.trainable,
        teacher=teacher,
    )


def _open_teacher(
    config: Config, lowered: LoweredStep, workdir: pathlib.Path, measured: bool
) -> LoadedTeacher:
    """Loads the teacher, and measures its speed if that is not `measured`.

    Raises:
      RunError: if it is not the teacher that the run began with.
    """
    params, sha256 = teachers.load(config, lowered.teacher, lowered.mesh)
    records = metrics.read(workdir / metrics.FILE) if measured else []
    before = next((r.get("teacher") for r in records if r["kind"] == "run"), None)
    if before is not None and before["parameters_sha256"] != sha256:
        raise RunError(
            f"teacher.path {config.teacher.path} is not the teacher that the run in {workdir} began"
            " with: put it back, or use another --workdir"
        )
    if measured:
        return LoadedTeacher(params, sha256, None)
    _, rows, time_steps = batch_shape(config)
    speed = teachers.tokens_per_second(
        lowered.teacher, params, rows, time_steps, lowered.mesh, lowered.dtype
    )
    return LoadedTeacher(params, sha256, speed)


def costs(config: Config, model: Model) -> tuple[float, Callable[[np.ndarray], Work]]:
    """(FLOPs per token of a step in rows of one document, the counter of a batch's work)."""
    if config.teacher is None:
        return train_flops_per_token(model, config.data.seq_len), work_counter(model)
    teacher = config.teacher
    cost = distillation_cost(teacher.objective, teacher.model, model)
    return cost(config.data.seq_len), counter_of(cost)


def placed_schedule(config: Config, mesh: jax.sharding.Mesh) -> ScheduleNumbers:
    """The schedule's numbers on all devices."""
    numbers = ScheduleNumbers.of(config.optimizer, config.train.steps)
    return ScheduleNumbers(*(hosts.global_array(x, meshes.replicated(mesh)) for x in numbers))


def _attached_devices() -> list[jax.Device]:
    """All devices. On CPUs, malloc is set up before XLA's threads allocate."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        host_memory.keep_large_buffers()
    return devices


def _check_same_data(pipeline: Pipeline, workdir: pathlib.Path) -> None:
    """Checks that a resumed run reads the tokens and the tokenizer that it started with."""
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


def abstract_batch(
    config: Config, mesh: jax.sharding.Mesh, teacher: Model | None = None
) -> dict[str, Any]:
    """Shapes, dtypes and shardings of a training batch on the mesh, the teacher's parameters among them."""
    shape = batch_shape(config)
    sharding = meshes.batch_sharding(mesh)
    names = ("tokens", "targets", "segment_ids", "positions")
    batch = {n: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for n in names}
    weights = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=meshes.replicated(mesh))
    schedule = ScheduleNumbers(*[number] * len(ScheduleNumbers._fields))
    taught = {} if teacher is None else {"teacher": teachers.abstract(config, teacher, mesh)}
    return {**batch, "loss_weights": weights, "schedule": schedule, **taught}


def _padded(token_bytes_V: np.ndarray, vocab_size: int) -> np.ndarray:
    padding = vocab_size - len(token_bytes_V)
    return np.pad(token_bytes_V, (0, padding)).astype(np.float32)

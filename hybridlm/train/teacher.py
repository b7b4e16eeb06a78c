"""The teacher of a run (config section `teacher`): its architecture, its parameters, its speed."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hybridlm.data import Tokenizer
from hybridlm.data.tokenizers import NoTokenizer
from hybridlm.distill.blockwise import distilled_layers
from hybridlm.distill.compose import check_alike
from hybridlm.distill.kl import Divergence
from hybridlm.distill.layers import stacked_like
from hybridlm.errors import ConfigError, RunError, UserError
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.settings import ModelConfig
from hybridlm.parallel.mesh import replicated, sharding, shardings
from hybridlm.runs import checkpoint
from hybridlm.runs.source import Source, open_source
from hybridlm.storage import open_path
from hybridlm.train.settings import Config

TIMED = 3  # forward passes that the teacher's speed is the best of


def resolve(config: Config, tokenizer: Tokenizer) -> Config:
    """The config with the teacher's architecture, and with what distillation freezes; uses no device.

    Args:
      config: with the student's vocabulary size filled in, and with `teacher`.

    Raises:
      UserError: if there is no such teacher, or it does not fit the model or the tokenizer.
    """
    teacher = config.teacher
    if teacher.model is None or open_path(teacher.path).exists():
        source = open_source(teacher.path, teacher.step)
        _check_tokenizer(source, tokenizer)
        if teacher.model not in (None, source.model):
            raise ConfigError(
                f"teacher.model is not the architecture of teacher.path {teacher.path}: leave it"
                " None, which takes that"
            )
        teacher = dataclasses.replace(teacher, model=source.model)
        config = dataclasses.replace(config, teacher=teacher)
    if teacher.objective == "blockwise" and config.init is None:
        raise ConfigError(
            "teacher.objective 'blockwise' trains the new mixers alone, and init is None, so all other"
            " parameters would stay as drawn: set init.path to the student that `hybridlm distill"
            " transfer` writes"
        )
    try:
        if teacher.objective == "blockwise":
            return _with_frozen(config)
        _check_vocabulary(teacher.model, config.model)
    except UserError as error:
        raise ConfigError(f"teacher.path {teacher.path}: {error}") from None
    return config


def model_of(config: Config) -> Model | None:
    """The teacher's graph, for "blockwise" with layers stacked as the student's; None without one.

    Args:
      config: as `resolve` returns it.
    """
    if config.teacher is None:
        return None
    settings = config.teacher.model
    if config.teacher.objective == "blockwise":
        settings = stacked_like(settings, config.model.layout)
    return Model.of(settings)


def divergence_of(config: Config, teacher: Model | None) -> Divergence | None:
    """The objective "kl" of a config; None for others."""
    if config.teacher is None or config.teacher.objective != "kl":
        return None
    return Divergence(teacher, config.teacher.temperature, config.teacher.ce_weight)


def abstract(config: Config, teacher: Model, mesh: Mesh) -> Params:
    """The shapes, dtypes and shardings of the teacher's parameters."""
    dtype = jnp.dtype(config.teacher.dtype)
    places = shardings(mesh, teacher.abstract, teacher.axes)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype, sharding=place),
        teacher.abstract,
        places,
    )


def load(config: Config, teacher: Model, mesh: Mesh) -> tuple[Params, str]:
    """(the teacher's parameters on the mesh, the SHA-256 of the file's); every host reads all of them.

    Raises:
      UserError: if there is no such teacher.
    """
    source = open_source(config.teacher.path, config.teacher.step)
    params = source.load(optimizer=False)["params"]
    named = Model.of(source.model).by_name(params)
    if set(named) != set(teacher.by_name(teacher.abstract)):
        raise RunError(f"{config.teacher.path} does not hold the parameters of its architecture")
    whole = teacher.from_names(named)

    def place(x: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        x = np.asarray(x, like.dtype)
        return jax.make_array_from_callback(x.shape, like.sharding, lambda index: x[index])

    placed = jax.tree.map(place, whole, abstract(config, teacher, mesh))
    return placed, checkpoint.digest(whole)


def tokens_per_second(
    teacher: Model, params: Params, rows: int, time_steps: int, mesh: Mesh, dtype: jnp.dtype
) -> float:
    """Tokens a second that the teacher's layers take forward, of all devices, without the head."""
    place = sharding(mesh, ("batch", "time"))
    shape = (rows, time_steps)

    def whole(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(shape, place, lambda index: x[index])

    ids_BT, tokens_BT = np.ones(shape, np.int32), np.zeros(shape, np.int32)
    positions_BT = np.broadcast_to(np.arange(time_steps, dtype=np.int32), shape)
    batch = [whole(x) for x in (tokens_BT, ids_BT, positions_BT)]

    def forward(params: Params, tokens_BT, ids_BT, positions_BT) -> jax.Array:
        context = SequenceContext(ids_BT, positions_BT)
        return jnp.sum(teacher.bind(params).hidden(tokens_BT, context, dtype=dtype))

    with jax.set_mesh(mesh):
        compiled = jax.jit(forward, out_shardings=replicated(mesh))
        compiled(params, *batch).block_until_ready()
        times = []
        for _ in range(TIMED):
            start = time.perf_counter()
            compiled(params, *batch).block_until_ready()
            times.append(time.perf_counter() - start)
    return rows * time_steps / min(times)


def _with_frozen(config: Config) -> Config:
    """The config in which only the mixers that differ from the teacher's are trained."""
    check_alike(config.teacher.model, config.model)
    layers = distilled_layers(config.teacher.model, config.model)
    stacked_like(config.teacher.model, config.model.layout)  # raises where the stacks do not fit
    mixers = [i for i, (_, mixer) in enumerate(config.model.layer_mixers())]
    trained = ["!layers.*.mixer"]
    if len(layers) < len(mixers):
        trained = [f"!layers.{i}.mixer" for i in layers]
    freeze, own = "|".join(["*", *trained]), config.optimizer.freeze
    if own == freeze or own.startswith(f"{freeze}|"):  # resolved before
        return config
    if "!" in own:
        raise ConfigError(
            f"optimizer.freeze is {own!r}, and with teacher.objective 'blockwise' all but the new"
            " mixers is frozen: name what to freeze of these, without '!'"
        )
    optimizer = dataclasses.replace(config.optimizer, freeze="|".join([freeze] + [own] * bool(own)))
    return dataclasses.replace(config, optimizer=optimizer)


def _check_vocabulary(teacher: ModelConfig, student: ModelConfig) -> None:
    if teacher.vocab_size != student.vocab_size:
        raise UserError(
            f"the teacher's vocab_size is {teacher.vocab_size} and the student's is"
            f" {student.vocab_size}: a divergence needs the same ids"
        )


def _check_tokenizer(source: Source, tokenizer: Tokenizer) -> None:
    theirs: Any = source.tokenizer()
    if isinstance(theirs, NoTokenizer):
        return
    if source.tokenizer_fingerprint() != tokenizer.fingerprint:
        raise ConfigError(
            f"teacher.path {source.path} was trained with another tokenizer ({theirs.kind}) than"
            f" data.tokenizer ({tokenizer.kind}): the teacher must read the same ids"
        )

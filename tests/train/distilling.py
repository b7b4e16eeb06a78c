"""Small teachers with students, and configs that distil the one into the other, for tests."""

import dataclasses

import jax
import numpy as np

from hybridlm import config as configs
from hybridlm.data.settings import TokenizerConfig
from hybridlm.data.tokenizers import open_tokenizer
from hybridlm.distill.transfer import transfer
from hybridlm.models.settings import ModelConfig
from hybridlm.parallel import hosts
from hybridlm.parallel import mesh as meshes
from hybridlm.runs import open_model, save_model
from hybridlm.settings.plain import to_dict
from hybridlm.train import setup
from hybridlm.train import teacher as teachers
from hybridlm.train.settings import Config
from tests.distill.subjects import FULL, opened

SOURCE = dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")


def save_pair(folder, mixer, layers=None, depth=2, noise=0.0, **settings):
    """Saves a transformer as folder/teacher, and a student of it as folder/student.

    Args:
      noise: what is added to the parameters of the student's new mixers, times normal numbers.
    """
    tokenizer = open_tokenizer(TokenizerConfig())
    config = ModelConfig(
        **dict(
            width=32,
            depth=depth,
            pattern="full",
            mixers=dict(full=FULL),
            mlp=dict(kind="swiglu", hidden=32),
            vocab_size=tokenizer.vocab_size,
            init_std=0.5,
        )
        | settings
    )
    teacher = dataclasses.replace(opened(config), tokenizer=tokenizer)
    save_model(teacher, folder / "teacher")
    found = transfer(teacher, mixer, layers)
    student, rng = found.student, np.random.default_rng(1)
    named = dict(student.model.by_name(student.params))
    for name in named:
        if ".mixer." in name and int(name.split(".")[1]) in found.layers:
            named[name] = named[name] + noise * rng.standard_normal(named[name].shape)
            named[name] = named[name].astype(np.float32)
    save_model(
        dataclasses.replace(student, params=student.model.from_names(named)), folder / "student"
    )


def config(folder, *, teacher=None, optimizer=None, mesh=None, **train) -> Config:
    """A config that distils the pair in a folder."""
    steps = dict(steps=6, log_every=1, eval_every=6, checkpoint_every=3, eval_sequences=2)
    return configs.read(
        dict(
            model=to_dict(open_model(folder / "student").config),
            data=dict(sources=dict(a=SOURCE), seq_len=32, batch_size=4, bigram_baseline=False),
            optimizer=dict(lr=3e-3, schedule="constant", weight_decay=0.0) | (optimizer or {}),
            train={**steps, "tensorboard": False, "compilation_cache": "off", **train},
            mesh=mesh or {},
            init=dict(path=str(folder / "student")),
            teacher=dict(path=str(folder / "teacher")) | (teacher or {}),
        )
    )


class Stepper:
    """The training step of a config on drawn tokens, without the loop and its files."""

    def __init__(self, given: Config):
        self.config, tokenizer = setup.resolve(given)
        devices = jax.devices()
        self.lowered = setup.lower_step(self.config, tokenizer.token_bytes(), devices)
        self.step = setup.compile_lowered(self.lowered)
        self.params = open_model(given.init.path).params
        self.taught, _ = teachers.load(self.config, self.lowered.teacher, self.lowered.mesh)
        self.schedule = setup.placed_schedule(self.config, self.lowered.mesh)

    @property
    def model(self):
        return self.lowered.model

    def run(self, steps, params=None, seed=0):
        """(state, metrics of each step) after steps from `params`, or from the student's."""
        state = self.lowered.init_state(0)
        given = jax.tree.map(
            lambda x, like: jax.device_put(np.array(x, np.float32), like.sharding),
            self.params if params is None else params,
            state["params"],
        )
        state = {**state, "params": given}
        rng, found = np.random.default_rng(seed), []
        for _ in range(steps):
            state, metrics = self.step(state, self.batch(rng))
            found.append({name: float(x) for name, x in metrics.items()})
        return jax.tree.map(np.array, state), found

    def batch(self, rng):
        parts, rows, time = setup.batch_shape(self.config)
        ids = np.sort(rng.integers(1, 4, (parts * rows, time)), axis=-1).astype(np.int32)
        ids[0, -3:] = 0
        ids = ids.reshape(parts, rows, time)  # the same rows whatever the number of parts
        changes = np.diff(ids, axis=-1, prepend=-1) != 0
        index = np.arange(time)
        positions = index - np.maximum.accumulate(np.where(changes, index, 0), axis=-1)
        tokens = rng.integers(0, self.config.model.vocab_size, (2, parts, rows, time))
        made = dict(
            tokens=tokens[0].astype(np.int32),
            targets=tokens[1].astype(np.int32),
            segment_ids=ids,
            positions=positions.astype(np.int32),
            loss_weights=(ids != 0).astype(np.float32),
        )
        place = meshes.batch_sharding(self.lowered.mesh)
        batch = {name: hosts.global_array(x, place) for name, x in made.items()}
        return {**batch, "schedule": self.schedule, "teacher": self.taught}

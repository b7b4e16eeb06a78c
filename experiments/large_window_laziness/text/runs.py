"""Trains and measures one run on real text; resumes it if it was stopped.

A run's folder holds `settings.json`, `curve.jsonl` (a line per measurement, written as it is made),
`state.npz` (the newest state, at most once in `SAVE_EVERY` seconds), `params.npz` and `done.json`
at the end. A seed gives all arms the same sequences in the same order and the same initial
parameters.
"""

import concurrent.futures
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.large_window_laziness import stream
from experiments.large_window_laziness.saved import read_tree, write_curve, write_tree
from experiments.large_window_laziness.text import corpus as texts
from experiments.large_window_laziness.text.arms import TextArm, TextScale, optimizer
from experiments.large_window_laziness.text.corpus import Corpus
from experiments.large_window_laziness.text.measure import HeldOut, at_end, during
from hybridlm.errors import UserError
from hybridlm.models.params import Model
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_text
from hybridlm.train.optimizer import ScheduleNumbers, make_optimizer
from hybridlm.train.settings import TrainConfig
from hybridlm.train.state import init_state
from hybridlm.train.step import make_train_step

SAVE_EVERY = 60.0  # seconds
TRIAL_SECONDS = 20.0  # that the speed is measured for
TRAINING_SHARE = 0.75  # of the budget; the rest is for measurements and the ends

Log = Callable[[str], None]


class TextProgram(NamedTuple):
    """The compiled step of one kind of positions, shared by windows, seeds and lengths of a run."""

    model: Model
    init: Callable[[jax.Array], Any]
    step: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, jax.Array]]]


_programs: dict[tuple[TextScale, str], TextProgram] = {}


def program_of(arm: TextArm) -> TextProgram:
    """The arm's program, in bfloat16 except on a CPU."""
    key = arm.scale, arm.positions
    if key not in _programs:
        model = Model.of(arm.model())
        schedule = optimizer(arm.scale.steps)
        adamw = make_optimizer(schedule, model.decay, model.muon)
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        train = TrainConfig(steps=arm.scale.steps)
        bytes_V = np.ones(model.config.vocab_size, np.float32)
        step = make_train_step(model, adamw, train, schedule, bytes_V, dtype)
        _programs[key] = TextProgram(
            model,
            jax.jit(lambda key: init_state(model, adamw, key)),
            jax.jit(step, donate_argnums=0),
        )
    return _programs[key]


def batch(corpus: Corpus, arm: TextArm, seed: int, step: int, steps: int) -> dict[str, Any]:
    """The batch of a step of a run of so many steps, of one micro-batch; all tokens count."""
    size = arm.scale.batch
    rows = texts.training(corpus, arm.scale, seed, step * size, size)
    made = stream.one_micro_batch(rows.as_sequences(), arm.window)
    return {**made, "schedule": ScheduleNumbers.of(optimizer(steps), steps)}


def run(
    arm: TextArm,
    seed: int,
    folder: pathlib.Path,
    held_out: HeldOut,
    steps: int,
    log: Log = print,
) -> None:
    """Starts or resumes one run, and returns when it is complete.

    Raises:
      UserError: if the folder has a run of other settings.
    """
    settings = _settings(arm, held_out.corpus, steps)
    path = folder / "settings.json"
    if path.exists() and json_text.loads(path.read_text()) != settings:
        raise UserError(
            f"{folder} holds a run of other settings than {arm.name} has now, such as another number"
            " of steps or other text: remove that folder, or give another --workdir"
        )
    if (folder / "done.json").exists():
        return
    make_folder(folder)
    write_text(path, json_text.dumps(settings))
    model, init, train_step = program_of(arm)
    state, curve, before = init(jax.random.key(seed)), [], 0.0
    if (folder / "state.npz").exists():
        state, curve, before = _restore(folder / "state.npz", state)
    every = max(steps // arm.scale.measurements, 1)
    begun = saved = time.perf_counter()
    first = int(state["step"])
    with concurrent.futures.ThreadPoolExecutor(1) as ahead:

        def prefetch(step: int):
            return ahead.submit(batch, held_out.corpus, arm, seed, step, steps)

        following = prefetch(first)
        for step in range(first, steps + 1):
            if step % every == 0 or step == steps:
                figures = during(held_out, model, state["params"], arm.window)
                spent = before + time.perf_counter() - begun
                curve.append({"step": step, **figures, "wall_seconds": round(spent, 1)})
                write_curve(folder, curve)
                far = figures["spliced"]
                log(
                    f"{arm.name} seed {seed}: step {step} of {steps}, furthest copies: gain"
                    f" {far['gain'][-1]:.2f} nats, accuracy {far['accuracy'][-1]:.2f}; no repeats:"
                    f" {figures['plain_nll']:.3f} nats, {spent:.0f} s"
                )
                if time.perf_counter() - saved > SAVE_EVERY and step < steps:
                    _save(folder / "state.npz", state, curve, spent)
                    saved = time.perf_counter()
            if step < steps:
                ready = following.result()
                if step + 1 < steps:
                    following = prefetch(step + 1)
                state, _ = train_step(state, ready)
    if not np.isfinite(curve[-1]["plain_nll"]):
        raise FloatingPointError(f"{arm.name} seed {seed}: the loss is not finite")
    end = at_end(held_out, arm, model, state["params"])
    write_tree(folder / "params.npz", state["params"])
    spent = round(before + time.perf_counter() - begun, 1)
    facts = {"arm": arm.name, "seed": seed, "steps": steps, "wall_seconds": spent, "end": end}
    write_text(folder / "done.json", json_text.dumps(facts))
    (folder / "state.npz").unlink(missing_ok=True)


def measured_steps(
    held_out: HeldOut, arm: TextArm, runs: int, seconds: float, trial: float = TRIAL_SECONDS
) -> dict[str, float]:
    """How many steps each of `runs` can have within so many seconds, at most those of the scale.

    Trains the arm from its start for `trial` seconds, after compiling, and throws this away.
    """
    _, init, train_step = program_of(arm)
    scale = arm.scale
    made = [batch(held_out.corpus, arm, 0, step, scale.steps) for step in range(4)]
    state, metrics = train_step(init(jax.random.key(0)), made[0])
    jax.block_until_ready(metrics)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < trial:
        state, metrics = train_step(state, made[count % len(made)])
        count += 1
        if count % 8 == 0:  # the queue of steps stays short
            jax.block_until_ready(metrics)
    jax.block_until_ready(metrics)
    a_step = (time.perf_counter() - begun) / count
    fit = int((seconds - trial) * TRAINING_SHARE / runs / a_step)
    return {
        "seconds_a_step": round(a_step, 5),
        "tokens_a_second": round(scale.batch * scale.length / a_step),
        "steps": max(min(fit, scale.steps), scale.measurements),
    }


def _settings(arm: TextArm, corpus: Corpus, steps: int) -> dict[str, Any]:
    return {
        "model": repr(arm.model()),
        "window": arm.window,
        "batch": arm.scale.batch,
        "length": arm.scale.length,
        "steps": steps,
        "optimizer": repr(optimizer(steps)),
        "text": corpus.facts["digest"],
    }


def _save(path: pathlib.Path, state, curve, spent: float) -> None:
    facts = json_text.dumps({"curve": curve, "spent": spent})
    write_tree(path, state, facts=np.array(facts))


def _restore(path: pathlib.Path, state):
    state, arrays = read_tree(path, state)
    facts = json_text.loads(str(arrays["facts"]))
    # Drop the last measurement: the resumed run repeats it.
    return state, facts["curve"][:-1], facts["spent"]

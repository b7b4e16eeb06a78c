"""Trains and measures one run, an arm with a seed; resumes it if it was stopped.

A run's folder holds `curve.jsonl` (one line per measurement), `state.npz` (the checkpoint, with the
heads' query and key weights at each measurement) and, when the run is complete, `done.json` with
its cost.
"""

import os
import pathlib
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.large_window_laziness import stream
from experiments.large_window_laziness.arms import Arm
from experiments.large_window_laziness.measure import measure
from hybridlm.models.params import Model, Params
from hybridlm.probes.weights import Weights, query_key_weights, weights_distance
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_text, writing
from hybridlm.train.optimizer import make_optimizer
from hybridlm.train.state import init_state
from hybridlm.train.step import make_train_step

Log = Callable[[str], None]


class ArmProgram(NamedTuple):
    """An arm's model, initialisation and compiled step, shared by all windows and seeds."""

    model: Model
    init: Callable[[jax.Array], Any]
    step: Callable[[Any, dict[str, np.ndarray]], tuple[Any, dict[str, jax.Array]]]


_programs: dict[str, ArmProgram] = {}


def program_of(arm: Arm) -> ArmProgram:
    """The arm's program; arms with the same model share one."""
    key = repr((arm.model(), arm.scale.lr))
    if key not in _programs:
        model = Model.of(arm.model())
        schedule = arm.scale.optimizer
        optimizer = make_optimizer(schedule, model.decay, model.muon)
        bytes_V = np.ones(arm.scale.task.vocab, np.float32)
        step = make_train_step(model, optimizer, arm.train(), schedule, bytes_V, jnp.float32)
        _programs[key] = ArmProgram(
            model,
            jax.jit(lambda key: init_state(model, optimizer, key)),
            jax.jit(step, donate_argnums=0),
        )
    return _programs[key]


def run(arm: Arm, seed: int, folder: pathlib.Path, steps: int | None = None, log: Log = print):
    """Starts or resumes one run, and returns when it is complete.

    Args:
      steps: replaces the arm's own budget.
    """
    if (folder / "done.json").exists():
        return
    steps = arm.steps if steps is None else steps
    make_folder(folder)
    model, init, train_step = program_of(arm)
    own = zlib.crc32(f"{arm.name}/{seed}".encode())  # each run has its own weights and data
    state = init(jax.random.key(own))
    before = {"cpu": 0.0, "wall": 0.0, "curve": [], "weights": []}
    if (folder / "state.npz").exists():
        state, before = _restore(folder / "state.npz", state)
    curve, weights = before["curve"], before["weights"]
    cpu, wall = time.process_time() - before["cpu"], time.perf_counter() - before["wall"]
    for step in range(int(state["step"]), steps + 1):
        if step % arm.scale.every == 0 or step == steps:
            figures = measure(arm.scale.task, model, state["params"], arm.final)
            costs = time.process_time() - cpu, time.perf_counter() - wall
            seconds = {"cpu_seconds": round(costs[0], 1), "wall_seconds": round(costs[1], 1)}
            curve.append({"step": step, **figures, **seconds})
            weights.append(_heads_weights(model, state["params"]))
            _save(folder / "state.npz", state, *costs, curve, weights)
            write_text(folder / "curve.jsonl", "".join(json_text.dumps(r) + "\n" for r in curve))
            shown = " ".join(f"{a:.2f}" for a in figures["accuracy"])
            log(
                f"{arm.name} seed {seed}: step {step} of {steps}, accuracy by distance {shown},"
                f" local {figures['local_nll']:.3f} nats, {costs[1]:.0f} s"
            )
        if step < steps:
            window = arm.window(step, steps, seed)
            state, _ = train_step(state, _batch(arm, own, step, window))
    for record, distances in zip(curve, _distances(model, curve, weights)):
        record["qk"] = distances
    write_text(folder / "curve.jsonl", "".join(json_text.dumps(r) + "\n" for r in curve))
    facts = {"arm": arm.name, "seed": seed, "steps": steps, **seconds}
    write_text(folder / "done.json", json_text.dumps(facts))
    (folder / "state.npz").unlink()


def _batch(arm: Arm, seed: int, step: int, window: int) -> dict[str, np.ndarray]:
    """The training step's batch, of one micro-batch."""
    size = arm.scale.batch
    batch = stream.batch(stream.sequences(arm.scale.task, seed, step * size, size))
    split = {name: x[None] for name, x in batch.items()}
    return {**split, "window": np.full(1, window, np.int32)}


def _heads_weights(model: Model, params: Params) -> list[np.ndarray]:
    """The query and key weights (H, P) of each layer that has heads, layer by layer."""
    found = query_key_weights(model, params).values()
    return [x.astype(np.float32) for pair in found for x in pair]  # exact: parameters are float32


def _distances(model: Model, curve, weights) -> list[list[list[float]]]:
    """[layer, head, relative Q/K distance to the final weights] of each head per measurement."""
    layers = query_key_weights(model, jax.tree.map(lambda x: np.zeros(x.shape), model.abstract))

    def by_layer(saved: list[np.ndarray]) -> Weights:
        exact = [x.astype(np.float64) for x in saved]
        return dict(zip(layers, zip(exact[::2], exact[1::2])))

    read = [by_layer(saved) for saved in weights]
    steps = [record["step"] for record in curve]
    by_step: dict[int, list[list[float]]] = {step: [] for step in steps}
    for entry in weights_distance(model, zip(steps, read), read[-1]):
        by_step[entry.step].append([entry.layer, entry.head, round(entry.relative, 4)])
    return list(by_step.values())


def _save(path: pathlib.Path, state, cpu, wall, curve, weights) -> None:
    arrays = {f"leaf{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    for i, saved in enumerate(weights):
        arrays |= {f"weights{i}_{j}": x for j, x in enumerate(saved)}
    facts = json_text.dumps({"cpu": cpu, "wall": wall, "curve": curve, "weights": len(weights)})
    draft = path.with_name("draft.npz")
    with writing(path):
        np.savez(draft, facts=np.array(facts), **arrays)
        os.replace(draft, path)


def _restore(path: pathlib.Path, state):
    with np.load(path) as file:
        facts = json_text.loads(str(file["facts"]))
        leaves = [jnp.asarray(file[f"leaf{i}"]) for i in range(len(jax.tree.leaves(state)))]
        each = len([name for name in file.files if name.startswith("weights0_")])
        weights = [[file[f"weights{i}_{j}"] for j in range(each)] for i in range(facts["weights"])]
    # Drop the last measurement: the resumed run repeats it.
    return jax.tree.unflatten(jax.tree.structure(state), leaves), {
        "cpu": facts["cpu"],
        "wall": facts["wall"],
        "curve": facts["curve"][:-1],
        "weights": weights[:-1],
    }

"""Trains and measures one run, an arm with a seed; resumes it if it was stopped.

A run's folder holds `settings.json`, `curve.jsonl` (one line per measurement), `state.npz` (the newest state, with
the query and key weights of `Arm.searched` at some measurements) and, when the run is complete, `done.json`
with its end and its cost. A seed gives all arms the same data in the same order and, where their
parameters have equal shapes, the same initial parameters, so that runs are paired by seed.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.large_window_laziness import stream
from experiments.large_window_laziness.arms import Arm
from experiments.large_window_laziness.endpoint import VERSION, endpoint
from experiments.large_window_laziness.measure import measure
from experiments.large_window_laziness.paired import first_lasting
from experiments.large_window_laziness.saved import read_tree, write_curve, write_tree
from hybridlm.errors import UserError
from hybridlm.models.params import Model, Params
from hybridlm.probes.weights import Weights, query_key_weights, weights_distance
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_text
from hybridlm.train.optimizer import make_optimizer
from hybridlm.train.state import init_state
from hybridlm.train.step import make_train_step

FORMED = 0.5  # accuracy at the largest distances, twice in a row, at which retrieval has formed
WEIGHTS_EVERY = 4  # measurements between two copies of query and key weights

Log = Callable[[str], None]


class ArmProgram(NamedTuple):
    """An arm's model, initialisation and compiled step, shared by all windows and seeds."""

    model: Model
    init: Callable[[jax.Array], Any]
    step: Callable[[Any, dict[str, np.ndarray]], tuple[Any, dict[str, jax.Array]]]


_programs: dict[str, ArmProgram] = {}


def program_of(arm: Arm) -> ArmProgram:
    """The arm's program; arms with the same model and rate share one."""
    key = repr((arm.model(), arm.lr))
    if key not in _programs:
        model = Model.of(arm.model())
        schedule = arm.optimizer()
        optimizer = make_optimizer(schedule, model.decay, model.muon)
        bytes_V = np.ones(arm.scale.task.vocab, np.float32)
        step = make_train_step(model, optimizer, arm.train(), schedule, bytes_V, jnp.float32)
        _programs[key] = ArmProgram(
            model,
            jax.jit(lambda key: init_state(model, optimizer, key)),
            jax.jit(step, donate_argnums=0),
        )
    return _programs[key]


def run(
    arm: Arm,
    seed: int,
    folder: pathlib.Path,
    steps: int | None = None,
    log: Log = print,
    ends: bool = True,
) -> None:
    """Starts or resumes one run, and returns when it is complete.

    A run ends at its budget; an arm that stops ends `scale.after` steps after retrieval is confirmed
    (`FORMED`) and the schedule of its window has ended. A run that goes on with another arm's begins
    with that one's newest state, if its folder is beside this one's.

    Args:
      steps: replaces the arm's own budget.
      ends: whether to measure the end (see `endpoint`).

    Raises:
      UserError: if the folder has a run of other settings or of another budget, or that of the run
        to go on with has other settings.
    """
    steps = arm.steps if steps is None else steps
    check_settings(arm, folder, steps)
    if (folder / "done.json").exists():
        return
    make_folder(folder)
    write_text(folder / "settings.json", json_text.dumps(_settings(arm) | {"steps": steps}))
    model, init, train_step = program_of(arm)
    state = init(jax.random.key(seed))
    before = {"cpu": 0.0, "wall": 0.0, "curve": [], "weights": []}
    saved = folder / "state.npz"
    if not saved.exists() and arm.begins_with:
        saved = folder.parents[1] / arm.begins_with / str(seed) / "state.npz"
        check_settings(arm, saved.parent)
    if saved.exists():
        state, before = _restore(saved, state)
    curve, weights = before["curve"], before["weights"]
    cpu, wall = time.process_time() - before["cpu"], time.perf_counter() - before["wall"]
    for step in range(int(state["step"]), steps + 1):
        if step % arm.scale.every == 0 or step == steps:
            figures = measure(arm.scale.task, model, state["params"], arm.final)
            costs = time.process_time() - cpu, time.perf_counter() - wall
            seconds = {"cpu_seconds": round(costs[0], 1), "wall_seconds": round(costs[1], 1)}
            curve.append({"step": step, **figures, **seconds})
            due = (len(curve) - 1) % WEIGHTS_EVERY == 0
            weights.append(_weights(arm, model, state["params"]) if due else [])
            _save(folder / "state.npz", state, *costs, curve, weights)
            write_curve(folder, curve)
            shown = " ".join(f"{a:.2f}" for a in figures["accuracy"])
            log(
                f"{arm.name} seed {seed}: step {step} of {steps}, accuracy by distance {shown},"
                f" local {figures['local_nll']:.3f} nats, {costs[1]:.0f} s"
            )
            if arm.stops and step >= last_step(curve, arm, steps):
                break
        if step < steps:
            window = arm.window(step, steps, seed)
            state, _ = train_step(state, batch(arm, seed, step, window))
    for record, distances in zip(
        curve, _distances(arm, model, state["params"], weights), strict=True
    ):
        record["qk"] = distances
    write_curve(folder, curve)
    end = endpoint(arm, model, state["params"]) if ends else None
    seconds = {
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
    }
    facts = {"arm": arm.name, "seed": seed, "steps": step, "budget": steps, **seconds, "end": end}
    write_text(folder / "done.json", json_text.dumps(facts))


def _settings(arm: Arm) -> dict[str, Any]:
    """What the trajectory of a run depends on, but for its seed and its length."""
    scale, local = arm.scale, dict(arm.local)
    if local["kind"] == "attention":  # training is the same for all windows beyond the sequence
        local["window"] = min(local["window"], scale.task.length)
    schedule = {"scheduled": arm.scheduled} if arm.scheduled else {}
    return schedule | {
        "lr": arm.lr,
        "task": list(arm.task),
        "batch": scale.batch,
        "every": scale.every,
        "windows": [arm.window(step, arm.steps, 0) for step in range(0, arm.scale.core, 10)],
        "final": arm.final,
        "model": repr(dataclasses.replace(arm, local=local).model()),
    }


def check_settings(arm: Arm, folder: pathlib.Path, steps: int | None = None) -> None:
    """Raises `UserError` if the folder has a run that the arm would not make now.

    Args:
      steps: the budget that the run must have; any by default. A folder of before budgets were
        recorded has one only when its run is complete.
    """
    path, done = folder / "settings.json", folder / "done.json"
    saved = json_text.loads(path.read_text()) if path.exists() else {}
    budgets = {saved.pop("steps", steps)}
    if saved and saved != json_text.loads(json_text.dumps(_settings(arm))):
        raise UserError(
            f"{folder} holds a run of other settings than {arm.name} has now, such as another rate:"
            " remove that folder, or give another --workdir"
        )
    if done.exists():
        budgets.add(json_text.loads(done.read_text())["budget"])
    other = budgets - {steps}
    if steps is not None and other:
        raise UserError(
            f"{folder} holds a run of {other.pop():,} steps, not of {steps:,}:"
            " give the same --steps, remove that folder, or give another --workdir"
        )


def final(arm: Arm, folder: pathlib.Path) -> tuple[Model, Params]:
    """The model of a complete run, with its parameters.

    Raises:
      UserError: if the folder has no complete run of this arm as it is now.
    """
    if not (folder / "done.json").exists():
        raise UserError(f"{folder} has no complete run of {arm.name}: train it with `run` first")
    check_settings(arm, folder)
    model, init, _ = program_of(arm)
    state, _ = _restore(folder / "state.npz", init(jax.random.key(0)))
    return model, state["params"]


def measure_end(arm: Arm, folder: pathlib.Path) -> bool:
    """Measures the end of a complete run from its parameters, and writes it into `done.json`.

    An end of the present measurements stays.

    Returns:
      Whether it was measured.

    Raises:
      UserError: if the folder has no complete run of this arm as it is now.
    """
    model, params = final(arm, folder)
    facts = json_text.loads((folder / "done.json").read_text())
    if has_end(facts):
        return False
    write_text(folder / "done.json", json_text.dumps(facts | {"end": endpoint(arm, model, params)}))
    return True


def has_end(facts: dict[str, Any]) -> bool:
    """Whether the facts of a `done.json` have an end of the present measurements."""
    return bool(facts["end"]) and facts["end"].get("version") == VERSION


def last_step(curve: list[dict[str, Any]], arm: Arm, steps: int) -> float:
    """The step at which a run with this curve stops; infinite while retrieval is not confirmed.

    It stops `arm.scale.after` steps after retrieval is confirmed and the schedule of its window, of a
    budget of `steps`, has ended.
    """
    far = [record["accuracy"][-1] for record in curve]
    formed = first_lasting([record["step"] for record in curve], far, FORMED)
    confirmed = formed.step + arm.scale.every if formed.seen else np.inf
    return max(confirmed, arm.scheduled * steps) + arm.scale.after


def batch(arm: Arm, seed: int, step: int, window: int) -> dict[str, np.ndarray]:
    """The training step's batch, of one micro-batch."""
    size = arm.scale.batch
    return stream.one_micro_batch(stream.sequences(arm.task, seed, step * size, size), window)


def _weights(arm: Arm, model: Model, params: Params) -> list[np.ndarray]:
    """The query and key weights (H, P) of each of `arm.searched`, from the bottom to the top."""
    found = query_key_weights(model, params)
    pairs = [found[layer] for layer in arm.searched]
    return [x.astype(np.float32) for pair in pairs for x in pair]  # exact: parameters are float32


def _distances(arm: Arm, model: Model, params: Params, weights) -> list[list[list[float]]]:
    """[layer, head, relative Q/K distance to the final weights] of each head per measurement."""
    layers = arm.searched

    def by_layer(saved: list[np.ndarray]) -> Weights:
        exact = [x.astype(np.float64) for x in saved]
        return dict(zip(layers, zip(exact[::2], exact[1::2])))

    final, found = by_layer(_weights(arm, model, params)), []
    for saved in weights:
        table = weights_distance(model, [(0, by_layer(saved))], final) if saved else ()
        found.append([[e.layer, e.head, round(e.relative, 4)] for e in table])
    return found


def _save(path: pathlib.Path, state, cpu, wall, curve, weights) -> None:
    counts = [len(saved) for saved in weights]
    facts = json_text.dumps({"cpu": cpu, "wall": wall, "curve": curve, "weights": counts})
    arrays = {f"weights{i}_{j}": x for i, saved in enumerate(weights) for j, x in enumerate(saved)}
    write_tree(path, state, facts=np.array(facts), **arrays)


def _restore(path: pathlib.Path, state):
    state, arrays = read_tree(path, state)
    facts = json_text.loads(str(arrays["facts"]))
    weights = [
        [arrays[f"weights{i}_{j}"] for j in range(count)]
        for i, count in enumerate(facts["weights"])
    ]
    # Drop the last measurement: the resumed run repeats it.
    return state, {
        "cpu": facts["cpu"],
        "wall": facts["wall"],
        "curve": facts["curve"][:-1],
        "weights": weights[:-1],
    }

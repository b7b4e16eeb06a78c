"""Why does a stochastic window cure large-window laziness? Measurements beside the runs, never in them.

    python -m experiments.large_window_laziness.cured --count
    python -m experiments.large_window_laziness.cured --trace
    python -m experiments.large_window_laziness.cured --trace --arms stochastic-rope,w4-rope,w32-rope

Four explanations, which differ in what they foresee (the small window is 4, the large one 32):

- *only narrow steps teach*: with a small window only the full layers can copy, so that their queries
  and keys are drawn to retrieval in these steps, and the other steps add nothing;
- *any step teaches*: a change of the window is a disturbance that does the same in all steps;
- *wide steps unlearn*: narrow steps teach, and wide ones undo a part of it;
- *the steps add up*: a step of either window teaches what it does in a run of that window alone, so
  that nothing but the mean of the two paces has to be explained.

`--count` needs the committed tables alone: a stochastic run's steps until retrieval, all of them and
those with the small window, over the steps of the small window's run of the same seed; and the sum of
the paces, the steps of each window over those of that window's run. Foreseen are 2, 1 and more than
1; 1, 1/2 and less than 1; more than 2, 1 and 1; and for the last 1 to 2, 1/2 to 1, and 1.
`--trace` trains arms again with further measurements (the training is the same, bit for bit) and
writes `traces.tsv` and `traces.svg`: the accuracy with both windows, and how strongly the gradient
under either draws the queries and keys of the full layers, and all parameters, to where this run's
training takes them. A run of one window is taken there by that window's gradients alone, so that only
the stochastic runs, whose steps are shared, compare the two windows fairly.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.large_window_laziness import paired, runs, stream, tables
from experiments.large_window_laziness.arms import ARMS, MAIN, POSITIONS, SETS, Arm, ExperimentScale
from experiments.large_window_laziness.claims import RESULTS
from experiments.large_window_laziness.drawing import finished
from experiments.large_window_laziness.measure import measure
from experiments.large_window_laziness.paired import Bounds, Interval, Time
from experiments.large_window_laziness.tables import Run
from hybridlm.analysis.figures import INK, PALETTE, save
from hybridlm.errors import UserError, exit_code
from hybridlm.models.loss import token_nll
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.probes import mixer_names
from hybridlm.probes.weights import query_key_weights

PULLS = ("pull", "norm", "pull_all", "norm_all")
COLUMNS = ("arm", "seed", "step", "window", "far", "near", *PULLS)
TRACED = "stochastic-rope,stochastic-nope"  # the arms that compare both windows fairly
GRADIENT_BATCHES = 8  # training batches of a gradient, drawn from a seed of their own
GRADIENT_SEED = 10**6 + 3


def narrow_steps(arm: Arm, seed: int, end: int) -> int:
    """The steps before `end` at which the arm's schedule has a smaller window than its last."""
    return sum(arm.window(step, arm.steps, seed) < arm.final for step in range(end))


def counted(
    found_runs: Sequence[Run], scale: ExperimentScale = MAIN
) -> dict[str, tuple[Interval, int]]:
    """By what is compared: the ratio of steps with its 95% interval, and the number of seeds.

    "all steps", "narrow steps": of the stochastic window over the steps of the smallest. "paces added":
    its narrow steps over those of the smallest window's run and its wide ones over those of the
    largest window's, together, with the steps of these two runs in "w4 over w32". Seeds of which a run
    has not retrieved are left out; the table of cures has them. Of few seeds it is the range (see
    `paired.interval_or_range`).
    """
    by_arm = tables.by_arm(found_runs)
    found = {}
    for positions in POSITIONS:
        name, small = f"stochastic-{positions}", f"w{scale.small}-{positions}"
        arm = ARMS[scale.task.name][name]
        seeds = sorted(set(by_arm.get(name, ())) & set(by_arm.get(small, ())))
        pairs = [(by_arm[name][seed].formed, by_arm[small][seed].formed, seed) for seed in seeds]
        pairs = [pair for pair in pairs if pair[0].seen and pair[1].seen]
        if not pairs:
            continue
        counts = [narrow_steps(arm, seed, int(a.step)) for a, _, seed in pairs]
        found[f"{positions}: all steps"] = _ratio([a.step / b.step for a, b, _ in pairs])
        found[f"{positions}: narrow steps"] = _ratio(
            [narrow / b.step for narrow, (_, b, _) in zip(counts, pairs)]
        )
        large = by_arm.get(f"w{scale.large}-{positions}", {})
        added, alone = [], []
        for narrow, (a, b, seed) in zip(counts, pairs):
            if seed in large and large[seed].formed.seen:
                c = large[seed].formed.step
                added.append(narrow / b.step + (a.step - narrow) / c)
                alone.append(b.step / c)
        if added:
            found[f"{positions}: paces added"] = _ratio(added)
            found[f"{positions}: w{scale.small} over w{scale.large}"] = _ratio(alone)
    return found


def _ratio(ratios: Sequence[float]) -> tuple[Interval, int]:
    """The geometric mean with its interval, and the number of ratios."""
    interval = paired.interval_or_range(Bounds.known(np.log(ratios)))
    return Interval(*np.exp(interval)), len(ratios)


def trace(arm: Arm, seed: int, steps: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of traces.tsv of one arm and seed; it trains them again.

    `far`, `near`: the accuracy at the largest and the smallest distances where window layers have
    `window`. `pull`: the part of minus the gradient of the loss under `window`, with respect to the
    queries and keys of the full layers, that points to their last values, in nats per unit of
    distance; `norm` is the whole gradient's norm. `pull_all`, `norm_all`: the same of all parameters.
    """
    model, init, train_step = runs.program_of(arm)
    state, steps = init(jax.random.key(seed)), arm.steps if steps is None else steps
    windows, kept, curve = (arm.scale.small, arm.scale.large), [], []
    for step in range(steps + 1):
        if step % arm.scale.every == 0 or step == steps:
            params = state["params"]
            weights = _flat(model, params), _whole(params)
            for window in windows:
                accuracy = measure(arm.scale.task, model, params, window)["accuracy"]
                slope = _gradient(arm, model, params, window)
                gradient = _flat(model, slope), _whole(slope)
                row = {"arm": arm.name, "seed": seed, "step": step, "window": window}
                row |= {"far": accuracy[-1], "near": accuracy[0]}
                kept.append((row, weights, gradient))
                if window == arm.final:
                    curve.append({"step": step, "accuracy": accuracy})
            if arm.final not in windows:  # the run stops by its own window's accuracy
                accuracy = measure(arm.scale.task, model, params, arm.final)["accuracy"]
                curve.append({"step": step, "accuracy": accuracy})
            if arm.stops and step >= runs.last_step(curve, arm, steps):
                break
        if step < steps:
            window = arm.window(step, steps, seed)
            state, _ = train_step(state, runs.batch(arm, seed, step, window))
    last = kept[-1][1]
    for row, weights, gradient in kept:
        for end, own, toward, slope in zip(("", "_all"), weights, last, gradient):
            left = np.subtract(toward, own, dtype=np.float64)
            distance = np.linalg.norm(left)
            row[f"pull{end}"] = float(-slope @ left / distance) if distance else float("nan")
            row[f"norm{end}"] = float(np.linalg.norm(slope))
        yield row


class Pull(NamedTuple):
    """A traced run before retrieval forms with its own window.

    Attributes:
      formed_small, formed_large: when it forms as measured with either window.
      small, large: the mean pull under either window on the full layers' queries and keys, and on all
        parameters.
    """

    arm: str
    seed: int
    formed_small: Time
    formed_large: Time
    small: tuple[float, float]
    large: tuple[float, float]


def pulls(rows: Sequence[tables.Row], scale: ExperimentScale = MAIN) -> list[Pull]:
    """What the rows of traces.tsv say of each run that ends with the largest window and forms there."""
    found = []
    for key in dict.fromkeys((row["arm"], int(row["seed"])) for row in rows):
        own = {
            window: [
                row
                for row in rows
                if (row["arm"], int(row["seed"]), int(row["window"])) == (*key, window)
            ]
            for window in (scale.small, scale.large)
        }
        formed = [
            paired.first_lasting(
                [int(row["step"]) for row in side], [float(row["far"]) for row in side], runs.FORMED
            )
            for side in own.values()
        ]
        if ARMS[scale.task.name][key[0]].final != scale.large or not formed[1].seen:
            continue
        small, large = (
            tuple(
                float(np.mean([float(r[n]) for r in side if int(r["step"]) < formed[1].step]))
                for n in ("pull", "pull_all")
            )
            for side in own.values()
        )
        found.append(Pull(*key, *formed, small, large))
    return found


def _gradient(arm: Arm, model: Model, params: Params, window: int) -> Params:
    """Of the training loss in nats per token, over batches that no run trains on."""
    size = arm.scale.batch * GRADIENT_BATCHES
    batch = stream.batch(stream.sequences(arm.task, GRADIENT_SEED, 0, size))
    return jax.device_get(_gradient_program(model, jnp.float32)(params, batch, np.int32(window)))


@per_model
def _gradient_program(model: Model, dtype: jnp.dtype):

    def loss(params: Params, batch: dict[str, jax.Array], window: jax.Array) -> jax.Array:
        module = model.bind(params)
        context = SequenceContext(batch["segment_ids"], batch["positions"], window)
        hidden_BTD = module.hidden(batch["tokens"], context, dtype=dtype)
        nll_BT = token_nll(hidden_BTD, module.head_kernel(), batch["targets"])
        weights_BT = batch["loss_weights"]
        return jnp.sum(nll_BT * weights_BT) / jnp.sum(weights_BT)

    return jax.jit(jax.grad(loss))


def _flat(model: Model, params: Params) -> np.ndarray:
    """The queries and keys of the full layers as one vector, float64."""
    found, names = query_key_weights(model, params), mixer_names(model)
    return np.concatenate([x.ravel() for i in found if names[i] == "full" for x in found[i]])


def _whole(params: Params) -> np.ndarray:
    """All parameters as one vector, float32."""
    return np.concatenate([np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(params)])


def figure_of(rows: Sequence[tables.Row]) -> Figure:
    """Far accuracy and pull over training, under both windows; a column for each arm."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure = Figure(figsize=(2.6 * max(len(arms), 2), 6.2), layout="constrained")
    grid = figure.subplots(3, len(arms), squeeze=False, sharex="col", sharey="row")
    windows = sorted({int(row["window"]) for row in rows})
    for column, arm in zip(grid.T, arms):
        for number, window in enumerate(windows):
            own = [r for r in rows if r["arm"] == arm and int(r["window"]) == window]
            for seed in dict.fromkeys(r["seed"] for r in own):
                line = [r for r in own if r["seed"] == seed]
                steps = [int(r["step"]) for r in line]
                for axes, what in zip(column, ("far", "pull", "pull_all")):
                    values = [float(r[what]) if r[what] not in ("", None) else np.nan for r in line]
                    label = f"window layers at {window}"
                    axes.plot(steps, values, color=PALETTE[number], linewidth=1.1, label=label)
        column[0].set_title(arm, fontsize=9, color=INK)
        column[-1].set_xlabel("step", fontsize=9)
    grid[0][0].set_ylabel("accuracy on far copies", fontsize=9)
    grid[1][0].set_ylabel("pull of the gradient\non full layers' Q and K", fontsize=9)
    grid[2][0].set_ylabel("pull of the gradient\non all parameters", fontsize=9)
    return finished(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="cured", description=__doc__.split("\n")[0])
    parser.add_argument("--count", action="store_true", help="ratios from the committed tables")
    parser.add_argument("--trace", action="store_true", help="train again, with more measurements")
    parser.add_argument("--arms", default=TRACED, help="of --trace, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="of --trace")
    parser.add_argument("--steps", type=int, help="of --trace; the arm's own budget by default")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    folder = arguments.out / "main"
    if not arguments.count and not arguments.trace:
        raise UserError("cured does nothing without --count or --trace")
    if arguments.count:
        found = counted(tables.read_runs(folder))
        for what, (ratio, seeds) in found.items():
            print(f"stochastic over w{MAIN.small}, {what}: {ratio}, {seeds} seeds")
        if not found:
            print("no seed has complete runs of the stochastic window and of the small one")
    if arguments.trace:
        names = arguments.arms.split(",")
        known = {arm.name: arm for name in ("core", "cures") for arm in SETS["main"][name]}
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"there is no arm {unknown[0]!r}; arms: {', '.join(known)}")
        rows: list[tables.Row] = []
        for seed in range(arguments.seeds):
            for name in names:
                rows += [_short(row) for row in trace(known[name], seed, arguments.steps)]
                print(f"{name} seed {seed}: {rows[-1]['step']} steps", flush=True)
                tables.write(folder / "traces.tsv", COLUMNS, rows)
        save(figure_of(tables.read(folder / "traces.tsv")), folder / "traces.svg")
    return 0


def _short(row: tables.Row) -> tables.Row:
    figures = {n: f"{row[n]:.4g}" for n in PULLS if np.isfinite(row[n])}
    return {**{n: x for n, x in row.items() if n not in PULLS}, **figures}


if __name__ == "__main__":
    sys.exit(exit_code("cured", main))

"""The scaling law of LongPPL with size and tokens, fitted to a table of runs.

    python -m experiments.large_window_laziness.scaling FILE.tsv --held_out S4 --json out.json

    ln LongPPL = b N^-alpha + c D^-beta        (no constant term)

N is the number of parameters without embeddings (column `n`), D the number of training tokens,
`token_multiplier` times the row's own N. FILE has tab-separated columns `model_size`,
`token_multiplier` (a number, with or without a trailing "n"), `n` and `loss` (LongPPL itself, not
its logarithm). All rows of the held-out size (the largest, by default) are left out of the fit.

The fit follows arXiv 2606.15378 and its published code. With L = ln LongPPL, the residual of a row
is that of the logarithm of L, ln L_predicted - ln L, as in arXiv 2203.15556 (section 3.3, where L
is the loss): "log residual" means the logarithm of the fitted quantity, which is itself a
logarithm. The sum over rows of Huber(residual), epsilon 1e-3, is minimised by L-BFGS-B from a grid
of starting points, alpha within [0.2, 0.3] unless `--free_alpha` is given. `--authors` fits by the
procedure of the published code, too, and prints the three fits as a table. Intervals are percentiles
over bootstrap samples of the training rows; where a size has few rows they say little about alpha,
whose bounds cut them.
"""

import argparse
import csv
import io
import itertools
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

from hybridlm.errors import WriteError
from hybridlm.settings import json_text
from hybridlm.storage.writing import write_text

EPSILON = 1e-3
ALPHA_BOUNDS = (0.2, 0.3)
FREE = (0.0, 3.0)  # bounds of alpha that do not bind
BETA_BOUNDS = (0.0, 3.0)
ALPHA_STARTS = (0.2, 0.233, 0.267, 0.3, 0.45, 0.6, 0.8, 1.1)  # those within the bounds are used
BETA_STARTS = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)
SHARE_STARTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the data term in L, at the centre of the rows
CONSTANTS = ("b", "c", "alpha", "beta")
COLUMNS = ("model_size", "token_multiplier", "n", "loss")
FEWEST_ROWS = 5
POLISHED = 3  # best results of the grid that are refined
INTERVAL = (2.5, 97.5)  # percentiles


class ScalingError(Exception):
    """A table that cannot be fitted; the message is one sentence that says why."""


class ScalingRows(NamedTuple):
    """A table with one row per run.

    Attributes:
      size: names.
      multiplier: D / N.
      params: N.
      tokens: D.
      log_longppl: L = ln LongPPL, above 0.
    """

    size: np.ndarray
    multiplier: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    log_longppl: np.ndarray

    def take(self, chosen: np.ndarray) -> "ScalingRows":
        """The rows chosen by a mask or an array of indices."""
        return ScalingRows(*(column[chosen] for column in self))


class Law(NamedTuple):
    """The constants of ln LongPPL = b N^-alpha + c D^-beta."""

    b: float
    c: float
    alpha: float
    beta: float

    def __call__(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """ln LongPPL at N parameters and D tokens."""
        return self.b * params**-self.alpha + self.c * tokens**-self.beta


def read_rows(path: pathlib.Path | str) -> ScalingRows:
    """Reads and checks a table.

    Raises:
      ScalingError: for an invalid file, column or number; it names the line.
    """
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ScalingError(f"{path} cannot be read: {reason}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ScalingError(
            f"{path} has no column {missing[0]!r}: it needs {', '.join(COLUMNS)}, tab-separated"
        )
    sizes, numbers = [], []
    for row in reader:
        where = f"{path}:{reader.line_num}"
        if not row["model_size"]:
            raise ScalingError(f"{where}: model_size is empty")
        sizes.append(row["model_size"])
        multiplier = (row["token_multiplier"] or "").strip().removesuffix("n")
        numbers.append(
            [
                _positive(multiplier, "token_multiplier", where),
                _positive(row["n"], "n", where),
                _positive(row["loss"], "loss", where),
            ]
        )
        if numbers[-1][2] <= 1:
            raise ScalingError(
                f"{where}: loss is {row['loss']}, where LongPPL (not its logarithm) must exceed 1"
            )
    multiplier, params, longppl = np.array(numbers, float).reshape(-1, 3).T
    return ScalingRows(np.array(sizes), multiplier, params, multiplier * params, np.log(longppl))


def split_rows(rows: ScalingRows, held_out: str | None = None) -> tuple[ScalingRows, ScalingRows]:
    """(training rows, held-out rows); by default the size with the most parameters is held out.

    Raises:
      ScalingError: for an unknown size, or if the other rows cannot determine four constants.
    """
    if held_out is None and len(rows.size):
        held_out = str(rows.size[np.argmax(rows.params)])
    if held_out not in rows.size:
        known = ", ".join(dict.fromkeys(rows.size.tolist())) or "none, as there is no row"
        raise ScalingError(f"there is no size {held_out!r} to hold out: the sizes are {known}")
    train = rows.take(rows.size != held_out)
    if not _determined(train):
        raise ScalingError(
            f"{len(train.size)} training rows remain without {held_out}: four constants need at"
            f" least {FEWEST_ROWS}, of at least 2 sizes and 2 token budgets"
        )
    return train, rows.take(rows.size == held_out)


def huber(residuals: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    """r^2 / 2 if |r| <= epsilon, else epsilon (|r| - epsilon / 2)."""
    size = np.abs(residuals)
    return np.where(size <= epsilon, size**2 / 2, epsilon * (size - epsilon / 2))


def log_residuals(law: Law, rows: ScalingRows) -> np.ndarray:
    """ln(predicted ln LongPPL) - ln(ln LongPPL) of each row."""
    return np.log(law(rows.params, rows.tokens)) - np.log(rows.log_longppl)


def fit(
    rows: ScalingRows,
    starts: Sequence[np.ndarray] | None = None,
    alpha: tuple[float, float] = ALPHA_BOUNDS,
) -> Law:
    """Fits the law: the least Huber loss of log residuals over descents from all starting points.

    Args:
      starts: (ln b, ln c, alpha, beta) each, from `as_start`; None for the grid.
      alpha: bounds of alpha.
    """
    objective = _Objective(rows)
    points = _grid(rows, alpha) if starts is None else [objective.centred(s) for s in starts]
    ends = [_descend(objective, point, EPSILON, alpha) for point in points]
    # The corner of the Huber loss stops line searches early: restart the best few from where they
    # stopped, first with a smoother corner.
    ends.sort(key=lambda end: end[0])
    for loss, point in ends[:POLISHED]:
        for epsilon in (30 * EPSILON, 5 * EPSILON):
            point = _descend(objective, point, epsilon, alpha)[1]
        before = math.inf
        loss, point = _descend(objective, point, EPSILON, alpha)
        while loss < (1 - 1e-6) * before:
            before = loss
            loss, point = _descend(objective, point, EPSILON, alpha)
        ends.append((loss, point))
    return objective.law(min(ends, key=lambda end: end[0])[1])


#: Starting points of the published code (thunlp/rethinking-hybrid-attention, src/scaling/fit_scaling.py).
#: Its starts of alpha, 0.1 to 2, are clipped to the bounds, which leaves their two ends.
AUTHORS_STARTS = dict(
    alpha=ALPHA_BOUNDS,
    beta=(0.1, 0.2, 0.5, 0.8, 1.0, 1.2),
    log_b=(0, 1, 2, 4, 6, 8, 10, 12),
    log_c=(0, 1, 2, 8, 10, 12),
)


def fit_as_authors(rows: ScalingRows) -> Law:
    """The law at which the published procedure ends on these rows.

    L-BFGS-B with gradients by finite differences from each of its starting points, until a step
    improves the loss by less than 1e-6; the best end is refined until 1e-8. Losses are about 2e-4 here,
    so that the descents stop early.
    """
    log_n, log_d, log_l = np.log(rows.params), np.log(rows.tokens), np.log(rows.log_longppl)

    def loss(point: np.ndarray) -> float:
        log_b, log_c, alpha, beta = point
        predicted = np.logaddexp(log_b - alpha * log_n, log_c - beta * log_d)
        return float(huber(predicted - log_l).sum())

    bounds = [(None, None), (None, None), ALPHA_BOUNDS, (0.0, None)]

    def descend(point: Sequence[float], tolerance: float, most: int):
        options = {"ftol": tolerance, "maxiter": most}
        return minimize(loss, np.array(point), method="L-BFGS-B", bounds=bounds, options=options)

    starts = itertools.product(*AUTHORS_STARTS.values())
    ends = [
        descend((log_b, log_c, alpha, beta), 1e-6, 3000) for alpha, beta, log_b, log_c in starts
    ]
    best = min(ends, key=lambda end: end.fun)
    log_b, log_c, alpha, beta = (float(x) for x in descend(best.x, 1e-8, 20000).x)
    return Law(math.exp(log_b), math.exp(log_c), alpha, beta)


def compared(rows: ScalingRows, held_out: str | None = None) -> dict[str, Law]:
    """By name: the law of the authors' procedure, of this fit, and of this fit without bounds of alpha."""
    train, _ = split_rows(rows, held_out)
    return {
        "the authors' procedure, α in [0.2, 0.3]": fit_as_authors(train),
        "the same bounds, this fit": fit(train),
        "this fit, α free": fit(train, alpha=FREE),
    }


def compared_table(laws: dict[str, Law], rows: ScalingRows, held_out: str | None = None) -> str:
    """The laws with their loss on the training rows and their errors on the others, as Markdown."""
    train, test = split_rows(rows, held_out)
    lines = [
        f"| fit without {test.size[0]} | b | c | α | β | Huber loss | R² of ln LongPPL on"
        f" {test.size[0]} | its root mean square error |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, law in laws.items():
        lines.append(
            f"| {name} | {law.b:.6g} | {law.c:.6g} | {law.alpha:.6f} | {law.beta:.6f} |"
            f" {huber(log_residuals(law, train)).sum():.3e} | {r2(law, test):.4f} |"
            f" {rmse(law, test):.4f} |"
        )
    return "\n".join(lines)


def as_start(law: Law) -> np.ndarray:
    """A law as a starting point of `fit`."""
    return np.array([math.log(law.b), math.log(law.c), law.alpha, law.beta])


class _Objective:
    """Huber loss and gradient in (ln b', ln c', alpha, beta).

    b' = b exp(-alpha mean ln N) and c' = c exp(-beta mean ln D) are the terms' sizes at the centre
    of the rows. In b and c, constants and exponents are so correlated that line searches fail.
    """

    def __init__(self, rows: ScalingRows):
        log_n, log_d = np.log(rows.params), np.log(rows.tokens)
        self.centre_n, self.centre_d = log_n.mean(), log_d.mean()
        self.log_n, self.log_d = log_n - self.centre_n, log_d - self.centre_d
        self.log_l = np.log(rows.log_longppl)

    def __call__(self, point: np.ndarray, epsilon: float) -> tuple[float, np.ndarray]:
        log_b, log_c, alpha, beta = point
        term_n, term_d = log_b - alpha * self.log_n, log_c - beta * self.log_d
        predicted = np.logaddexp(term_n, term_d)
        residuals = predicted - self.log_l
        slope = np.clip(residuals, -epsilon, epsilon)
        by_n = slope * np.exp(term_n - predicted)
        by_d = slope * np.exp(term_d - predicted)
        gradient = [by_n.sum(), by_d.sum(), -by_n @ self.log_n, -by_d @ self.log_d]
        # Divided by epsilon to fit the optimizer's absolute tolerances.
        return huber(residuals, epsilon).sum() / epsilon, np.array(gradient) / epsilon

    def centred(self, start: np.ndarray) -> np.ndarray:
        log_b, log_c, alpha, beta = start
        return np.array([log_b - alpha * self.centre_n, log_c - beta * self.centre_d, alpha, beta])

    def law(self, point: np.ndarray) -> Law:
        log_b, log_c, alpha, beta = (float(x) for x in point)
        return Law(
            math.exp(log_b + alpha * self.centre_n),
            math.exp(log_c + beta * self.centre_d),
            alpha,
            beta,
        )


def _grid(rows: ScalingRows, bounds: tuple[float, float]) -> list[np.ndarray]:
    within = [alpha for alpha in ALPHA_STARTS if bounds[0] <= alpha <= bounds[1]]
    centre = float(np.exp(np.log(rows.log_longppl).mean()))
    return [
        np.array([math.log(centre * (1 - share)), math.log(centre * share), alpha, beta])
        for alpha, beta, share in itertools.product(within, BETA_STARTS, SHARE_STARTS)
    ]


def _descend(
    objective: _Objective, point: np.ndarray, epsilon: float, alpha: tuple[float, float]
) -> tuple[float, np.ndarray]:
    bounds = [(-30.0, 30.0), (-30.0, 30.0), alpha, BETA_BOUNDS]
    done = minimize(
        objective,
        point,
        args=(epsilon,),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 300, "ftol": 1e-10, "gtol": 1e-9},
    )
    return float(done.fun), done.x


def bootstrap(
    rows: ScalingRows,
    law: Law,
    samples: int,
    seed: int,
    bounds: tuple[float, float] = ALPHA_BOUNDS,
) -> list[Law]:
    """Fits laws to bootstrap resamples of the rows; deterministic in the seed.

    A resample that cannot determine the constants (see `split_rows`) is drawn again. Each fit
    starts from `law` and from a few points near it.
    """
    rng = np.random.default_rng(seed)
    starts = []
    for alpha, beta in itertools.product(ALPHA_BOUNDS, (0.6 * law.beta, 1.6 * law.beta)):
        # Change the exponents and keep the terms' sizes at the centre of the rows.
        d_n = (alpha - law.alpha) * np.log(rows.params).mean()
        d_d = (beta - law.beta) * np.log(rows.tokens).mean()
        starts.append(as_start(law) + [d_n, d_d, alpha - law.alpha, beta - law.beta])
    laws = []
    while len(laws) < samples:
        drawn = rows.take(rng.integers(0, len(rows.size), len(rows.size)))
        if _determined(drawn):
            laws.append(fit(drawn, [as_start(law), *starts], bounds))
    return laws


def r2(law: Law, rows: ScalingRows) -> float:
    """The share of the variance of ln LongPPL over these rows that the law explains."""
    spread = np.sum((rows.log_longppl - rows.log_longppl.mean()) ** 2)
    return float(1 - np.sum((law(rows.params, rows.tokens) - rows.log_longppl) ** 2) / spread)


def rmse(law: Law, rows: ScalingRows) -> float:
    """The root mean square error of ln LongPPL over these rows."""
    return float(np.sqrt(np.mean((law(rows.params, rows.tokens) - rows.log_longppl) ** 2)))


def analyse(
    rows: ScalingRows,
    held_out: str | None = None,
    samples: int = 200,
    seed: int = 0,
    bounds: tuple[float, float] = ALPHA_BOUNDS,
) -> dict[str, Any]:
    """Fits, predicts the held-out rows and resamples; returns the command's JSON output."""
    train, test = split_rows(rows, held_out)
    law = fit(train, alpha=bounds)
    resampled = bootstrap(train, law, samples, seed, bounds)
    residuals = law(test.params, test.tokens) - test.log_longppl
    draws = np.array([other(test.params, test.tokens) for other in resampled])
    held = []
    for i in range(len(test.size)):
        low, high = np.exp(_interval(draws[:, i]))
        held.append(
            {
                "model_size": str(test.size[i]),
                "token_multiplier": float(test.multiplier[i]),
                "n": float(test.params[i]),
                "tokens": float(test.tokens[i]),
                "actual_log_longppl": float(test.log_longppl[i]),
                "predicted_log_longppl": float(test.log_longppl[i] + residuals[i]),
                "actual_longppl": float(np.exp(test.log_longppl[i])),
                "predicted_longppl": float(np.exp(test.log_longppl[i] + residuals[i])),
                "predicted_longppl_interval": [float(low), float(high)],
            }
        )
    constants = np.array(resampled)
    return {
        "law": "ln LongPPL = b * n^-alpha + c * tokens^-beta",
        "residual": "ln(predicted ln LongPPL) - ln(ln LongPPL)",
        "held_out": str(test.size[0]),
        "train_rows": len(train.size),
        "constants": dict(law._asdict()),
        "intervals": {
            name: [float(x) for x in _interval(constants[:, i])] for i, name in enumerate(CONSTANTS)
        },
        "interval_percentiles": list(INTERVAL),
        "bootstrap": {"samples": samples, "seed": seed},
        "alpha_bounds": list(bounds),
        "alpha_at_bound": bool(np.min(np.abs(np.array(bounds) - law.alpha)) < 1e-6),
        "train_r2": r2(law, train),
        "train_r2_scale": "ln LongPPL",
        "huber_epsilon": EPSILON,
        "huber_loss": float(huber(log_residuals(law, train)).sum()),
        "held_out_rmse_log_longppl": rmse(law, test),
        "held_out_r2": r2(law, test),
        "held_out_rows": held,
    }


def table(result: dict[str, Any]) -> str:
    """The result of `analyse` as text."""
    low, high = result["interval_percentiles"]
    lines = [
        f"{result['law']}, {result['train_rows']} rows, without {result['held_out']}",
        f"  constant        value   {low:g}% to {high:g}% of {result['bootstrap']['samples']}"
        " bootstrap samples",
    ]
    for name in CONSTANTS:
        below, above = result["intervals"][name]
        note = "  (at its bound)" if name == "alpha" and result["alpha_at_bound"] else ""
        value = result["constants"][name]
        lines.append(f"  {name:<8} {value:>12.5g}   {below:.5g} to {above:.5g}{note}")
    lines += [
        f"  train R^2, of ln LongPPL: {result['train_r2']:.4f}",
        f"  Huber loss (epsilon {result['huber_epsilon']:g}): {result['huber_loss']:.4e}",
        f"held out: root mean square error of ln LongPPL {result['held_out_rmse_log_longppl']:.4f},"
        f" R^2 {result['held_out_r2']:.4f}",
        "  size    D/N      LongPPL   predicted    error   interval of the prediction",
    ]
    for row in result["held_out_rows"]:
        error = row["predicted_longppl"] / row["actual_longppl"] - 1
        below, above = row["predicted_longppl_interval"]
        lines.append(
            f"  {row['model_size']:<5}{row['token_multiplier']:>7.1f}{row['actual_longppl']:>12.4f}"
            f"{row['predicted_longppl']:>12.4f}{error:>9.2%}   {below:.3f} to {above:.3f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 2, with one sentence on stderr, for input that cannot be fitted."""
    parser = argparse.ArgumentParser(prog="scaling", description=__doc__.split("\n")[0])
    parser.add_argument("table", metavar="FILE.tsv", type=pathlib.Path)
    parser.add_argument("--held_out", help="size to predict; the largest by default")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the result to")
    parser.add_argument("--bootstrap", type=int, default=200, help="resamples (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    parser.add_argument("--free_alpha", action="store_true", help="fit without the bounds of alpha")
    parser.add_argument(
        "--authors", action="store_true", help="also print the fit of the published procedure"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.bootstrap < 1:
            raise ScalingError(f"--bootstrap must be at least 1, not {arguments.bootstrap}")
        if arguments.seed < 0:
            raise ScalingError(f"--seed must be at least 0, not {arguments.seed}")
        if arguments.json is not None and not arguments.json.parent.is_dir():
            raise ScalingError(f"--json {arguments.json}: there is no folder to write it to")
        rows = read_rows(arguments.table)
        bounds = FREE if arguments.free_alpha else ALPHA_BOUNDS
        result = analyse(rows, arguments.held_out, arguments.bootstrap, arguments.seed, bounds)
        print(table(result))
        if arguments.authors:
            laws = compared(rows, arguments.held_out)
            print(compared_table(laws, rows, arguments.held_out))
        if arguments.json is not None:
            write_text(arguments.json, json_text.dumps(result, indent=2) + "\n")
            print(f"written to {arguments.json}")
    except (ScalingError, WriteError) as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2
    return 0


def _positive(text: str | None, column: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ScalingError(f"{where}: {column} is {text!r}, where a positive number is expected")
    return value


def _determined(rows: ScalingRows) -> bool:
    """Whether the rows determine the four constants."""
    pairs = set(zip(rows.params.tolist(), rows.tokens.tolist()))
    sizes, budgets = len(set(rows.params.tolist())), len(set(rows.multiplier.tolist()))
    return len(rows.size) >= FEWEST_ROWS and len(pairs) >= 4 and sizes >= 2 and budgets >= 2


def _interval(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, INTERVAL)


if __name__ == "__main__":
    sys.exit(main())

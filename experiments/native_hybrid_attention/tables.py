"""The tables of README.md, from the rows of the results."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from experiments.distill_then_replace.tables import verdict
from experiments.large_window_laziness.paired import Bounds, Interval, holm, interval, two_sided
from experiments.native_hybrid_attention.arms import (
    ABLATED_SLOTS,
    ABLATED_WINDOWS,
    MQAR,
    SCALES,
    SEEDS,
    SETS,
    TEXT,
    WINDOWS,
    Arm,
    ablation,
    causes,
    controls,
    core,
    slide,
)
from experiments.native_hybrid_attention.run import Row, Unit, units
from hybridlm.distill.selection import noise
from hybridlm.models.accounting import state_bytes

Rows = Mapping[Unit, Row]
Others = Mapping[str, Sequence[Mapping[str, str]]]  # rows of other tables, by name
FIGURE = {MQAR: "accuracy_1x", TEXT: "heldout"}
TITLE = {MQAR: "accuracy", TEXT: "held-out nats a byte"}
NOT_RUN = "Not yet run."
CONTEXT = 4096  # tokens that the states' sizes are stated for
FEWEST = 6  # pairs that have a finite interval


def by_seed(rows: Rows, arm: Arm, seeds: Sequence[int] = SEEDS) -> dict[int, Row]:
    """The runs of an arm, by seed."""
    found = (Unit(arm.task, arm.name, seed) for seed in seeds)
    return {unit.seed: rows[unit] for unit in found if unit in rows}


def seeds_of(name: str) -> Sequence[int]:
    """The seeds of a set; arms that other sets give more seeds have these alone in its table."""
    return SEEDS[: SETS[name].seeds]


def ablated(rows: Rows) -> dict[Arm, dict[int, Row]]:
    """The ablation's runs by seed."""
    return {arm: by_seed(rows, arm, seeds_of("ablation")) for arm in ablation(MQAR)}


def differences(rows: Rows, arm: Arm, base: Arm, seeds: Sequence[int] = SEEDS) -> list[float]:
    """The figure of `arm` less that of `base`, of each seed that both have."""
    ours, theirs = by_seed(rows, arm, seeds), by_seed(rows, base, seeds)
    name = FIGURE[arm.task]
    return [ours[s][name] - theirs[s][name] for s in sorted(ours.keys() & theirs.keys())]


def comparison(rows: Rows, task: str, arms: Sequence[Arm], base: Arm) -> str:
    """Each arm's figure, and its difference from `base` by seed with a 95% interval."""
    present = [arm for arm in arms if by_seed(rows, arm)]
    if not present:
        return NOT_RUN
    steps = task == MQAR
    lines = [
        f"| layers | seeds | bytes of state at {CONTEXT:,} tokens | {TITLE[task]} |"
        + (" steps |" if steps else "")
        + f" less {base.title} | p |",
        "|---|--:|--:|---|" + ("---|" if steps else "") + "---|--:|",
    ]
    compared = {arm.name: differences(rows, arm, base) for arm in present if arm != base}
    pairs = {name: d for name, d in compared.items() if len(d) >= FEWEST}
    p = dict(zip(pairs, holm([two_sided(Bounds.known(d)) for d in pairs.values()])))
    for arm in present:
        own = list(by_seed(rows, arm).values())
        values = [row[FIGURE[task]] for row in own]
        size = sum(state_bytes(arm.served(), CONTEXT))
        made = f" {_range([row['steps'] for row in own])} |" if steps else ""
        d = compared.get(arm.name)
        lines.append(
            f"| {arm.title} | {len(own)} | {size:,} | {_spread(values)} |{made}"
            f" {'' if d is None else difference(d)} |"
            f" {f'{p[arm.name]:.3f}' if arm.name in p else ''} |"
        )
    return "\n".join(lines)


def difference(d: Sequence[float]) -> str:
    """A mean of paired differences with its interval, or with its range where there are few pairs."""
    if not d:
        return "no pair"
    if len(d) < FEWEST:
        return f"{mean(d):+.3f}, {min(d):+.3f} to {max(d):+.3f} in {len(d)} pairs"
    found: Interval = interval(d)
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def slide_table(rows: Rows, task: str) -> str:
    """One window in every layer, from none to all tokens."""
    arms = [arm for arm in slide(task) if by_seed(rows, arm)]
    if not arms:
        return NOT_RUN
    last = slide(task)[-1]
    head = f"| window | seeds | {TITLE[task]} | less window {last.windows[0]} |"
    lines = [head, "|--:|--:|---|---|"]
    for arm in arms:
        values = [row[FIGURE[task]] for row in by_seed(rows, arm).values()]
        d = "" if arm == last else difference(differences(rows, arm, last))
        lines.append(f"| {arm.windows[0]} | {len(values)} | {_spread(values)} | {d} |")
    return "\n".join(lines)


def ablation_table(rows: Rows) -> str:
    """Mean accuracy by window and slots, least and most of the seeds in brackets."""
    cells = {
        (arm.slots, arm.windows[0]): [row[FIGURE[MQAR]] for row in own.values()]
        for arm, own in ablated(rows).items()
    }
    if not any(cells.values()):
        return NOT_RUN
    lines = [
        f"| slots | {' | '.join(f'window {w}' for w in ABLATED_WINDOWS)} |",
        "|--:|" + "---|" * len(ABLATED_WINDOWS),
    ]
    for m in ABLATED_SLOTS:
        row = [_spread(cells[m, w]) if cells[m, w] else "not run" for w in ABLATED_WINDOWS]
        lines.append(f"| {m} | {' | '.join(row)} |")
    counts = {len(values) for values in cells.values() if values}
    return "\n".join([*lines, "", f"Seeds of a cell: {_range(sorted(counts))}."])


def causes_table(rows: Rows) -> str:
    """What a window of all tokens reaches without parts of the published layer, by the seeds of its set."""
    seeds = seeds_of("causes")
    found = {arm: own for arm in causes() if (own := by_seed(rows, arm, seeds))}
    if not any(arm.changed for arm in found):
        return NOT_RUN
    lines = ["| layer | seeds | accuracy | less as published |", "|---|--:|---|---|"]
    for arm, own in found.items():
        values = [row[FIGURE[arm.task]] for row in own.values()]
        d = difference(differences(rows, arm, causes()[0], seeds)) if arm.changed else ""
        lines.append(f"| {arm.title} | {len(own)} | {_spread(values)} | {d} |")
    return "\n".join(lines)


def cost_table(rows: Rows) -> str:
    """Runs of each set and task, and processor time: what is done, and what is left at its rate."""
    lines = [
        "| set | task | runs | done | seconds a run, median | minutes done | minutes left, estimated |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    counted: set[Unit] = set()
    total = [0, 0, 0.0, 0.0]
    for name, chosen in SETS.items():
        for task in SCALES:
            planned = [u for u in units([name], [task]) if u not in counted]
            if not planned:
                continue
            counted.update(planned)
            own = [rows[u]["cpu_seconds"] for u in planned if u in rows]
            known = own or [r["cpu_seconds"] for u, r in rows.items() if u.task == task]
            each = median(known) if known else math.nan
            left = (len(planned) - len(own)) * each / 60 if len(own) < len(planned) else 0.0
            done = sum(own) / 60
            shown = ["not measured" if math.isnan(x) else f"{x:.1f}" for x in (each, done, left)]
            title = f"{name}: {chosen.title}"
            lines.append(
                f"| {title} | {SCALES[task].title} | {len(planned)} | {len(own)} |"
                f" {' | '.join(shown)} |"
            )
            for i, x in enumerate((len(planned), len(own), done, left)):
                total[i] += x
    left = "not measured" if math.isnan(total[3]) else f"{total[3]:.1f}"
    lines.append(f"| all | | {total[0]} | {total[1]} | | {total[2]:.1f} | {left} |")
    return "\n".join(lines)


def search_table(found: Sequence[Mapping[str, str]]) -> str:
    """The rows of search.tsv: which layers each method gives the wide window."""
    if not found:
        return NOT_RUN
    names = list(found[0])
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *(f"| {' | '.join(row[n] for n in names)} |" for row in found)])


def kept_table(found: Sequence[Mapping[str, str]]) -> str:
    """The rows of kept.tsv: loss and divergence of each model, and their paired changes."""
    if not found:
        return NOT_RUN
    change = "less the model above"
    lines = [
        f"| model | held-out loss, nats a token | {change} | KL from the teacher | {change} |",
        "|---|---|---|---|---|",
    ]
    above: dict[str, list[float]] = {}
    for name in dict.fromkeys(row["model"] for row in found):
        own = [row for row in found if row["model"] == name]
        values = {key: [float(row[key]) for row in own] for key in ("loss", "kl")}
        cells = [name]
        for key, of in values.items():
            cells += [str(noise.interval(of)), verdict(of, above[key]) if above else ""]
        lines.append(f"| {' | '.join(cells)} |")
        above = values
    tokens = sum(int(row["tokens"]) for row in own)
    return "\n".join([*lines, "", f"Of {len(own)} sequences with {tokens:,} targets."])


def tables(rows: Rows, others: Others) -> dict[str, str]:
    """The tables of README.md by name."""
    made: dict[str, Any] = {}
    for task in SCALES:
        base = core(task)[0]
        made[f"core_{task}"] = comparison(rows, task, core(task), base)
        made[f"controls_{task}"] = comparison(rows, task, [base, *controls(task)], base)
        if not any(by_seed(rows, arm) for arm in controls(task)):
            made[f"controls_{task}"] = NOT_RUN
        made[f"slide_{task}"] = slide_table(rows, task)
    return made | {
        "ablation": ablation_table(rows),
        "causes": causes_table(rows),
        "search": search_table(others["search"]),
        "kept": kept_table(others["kept"]),
        "cost": cost_table(rows),
        "figures": figures_table(rows),
    }


def figures_table(rows: Rows) -> str:
    """Links to the figures whose runs are there."""
    found = [f"![{title}](results/{name}.svg)" for name, title in drawn(rows).items()]
    return "\n".join(found) if found else NOT_RUN


def drawn(rows: Rows) -> dict[str, str]:
    """The figures of at least two arms, by name of their file, with titles."""

    def several(arms: Sequence[Arm]) -> bool:
        return sum(bool(by_seed(rows, arm)) for arm in arms) > 1

    titles = {}
    for task in SCALES:
        if several([*core(task), *controls(task)]):
            titles[f"core_{task}"] = f"Hybrids and full attention, {SCALES[task].title}"
        if several(slide(task)):
            titles[f"slide_{task}"] = (
                f"One window from 0 to {WINDOWS[task][-1]} tokens, {SCALES[task].title}"
            )
    if several(ablation(MQAR)):
        titles["ablation"] = "Accuracy on MQAR by window and slots"
    return titles


def _spread(values: Sequence[float]) -> str:
    """Mean, and least to most of several."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

"""The tables of README.md, from the committed results."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.large_window_laziness.paired import Bounds, two_sided
from hybridlm.distill.selection.noise import Interval, difference, interval

LEVEL, MOST_PAIRS = 0.05, 16  # of a difference beyond noise; whose sign patterns are enumerated
LAST = 4  # steps that an arm's final error is the mean of
MIB = 2**20
Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """Markdown by the name of a table; those whose results are there."""
    makers = {
        "blockwise": blockwise,
        "selections": selections,
        "curve": curve,
        "decode": decode,
        "finetune": finetune,
        "usage": usage,
        "costs": costs,
        "compiled": compiled,
    }
    return {name: make(results) for name, make in makers.items() if _has(results, name)}


def blockwise(results: Results) -> str:
    arms = results["blockwise"]
    by_start = {(a["mixer"], a["start"]): a for a in arms if a["name"] != "student"}

    def lower(arm: Results, start: str) -> str:
        other = by_start.get((arm["mixer"], start))
        if other is None or other is arm or arm["name"] == "student":
            return ""
        return _of_layers(arm, final_mse(arm), final_mse(other))

    rows = []
    for arm in arms:
        speed, forward = arm["tokens_per_second"][-1], arm["teacher_forward_tokens_per_second"]
        rows.append(
            [
                f"{arm['mixer']}, {arm['start']}",
                arm["step"][-1],
                f"{arm['relative_error'][0]:.3f}",
                f"{final_error(arm):.3f}",
                _of_layers(arm, final_mse(arm), arm["mse"][0]),
                lower(arm, "fresh"),
                lower(arm, "copied"),
                f"{arm['heldout_loss'][-1]:.2f}",
                f"{speed / forward:.0%}" if speed else "",
            ]
        )
    heads = "mixer, start | steps | error, step 1 | error, last 4 steps | layers whose error fell"
    heads += " | layers below fresh | layers below copied | held-out loss, all replaced"
    heads += " | speed of the teacher's forward"
    return _table(heads, rows)


def selections(results: Results) -> str:
    found = results["selections"]
    total, more = len(found["layers"]), {x["method"]: x for x in results["more"]["budget"]}
    best = min(more.values(), key=lambda x: interval(x["kl"]).mean)
    rows = []
    for one in found["selections"]:
        own = more[one["method"]]
        overlap = one["overlap"]
        rows.append(
            [
                one["method"],
                ", ".join(map(str, one["kept"])),
                _shown(interval(own["kl"])),
                "" if own is best else verdict(own["kl"], best["kl"]),
                _shown(interval(own["loss"])),
                _shown(interval(own["needle_nll"])),
                f"{overlap['kept']} of {overlap['heads']} ({overlap['chance']:.1f})",
            ]
        )
    for name, kept in (("teacher", "all"), ("student", "none")):
        own = results["more"].get("ends", {}).get(name)
        if own is not None:
            shown = [_shown(interval(own[m])) for m in ("kl", "loss", "needle_nll")]
            rows.append([f"({name})", kept, shown[0], "", *shown[1:], ""])
    heads = (
        f"method | the {len(found['selections'][0]['kept'])} layers of {total} kept | KL | KL above"
    )
    heads += f" {best['method']}'s | loss | needle, nats a token | top heads kept (by chance)"
    return _table(heads, rows)


def curve(results: Results) -> str:
    points = curve_points(results)
    counts = sorted({n for line in points.values() for n in line})
    rows = []
    for method, line in points.items():
        if method != "random":
            rows.append([method, *(_shown(interval(line[n])) if n in line else "" for n in counts)])
    draws = random_means(results)
    rows.append(
        [
            f"random, {len(next(iter(draws.values())))} draws, least to most",
            *(f"{min(draws[n]):.3g} to {max(draws[n]):.3g}" if n in draws else "" for n in counts),
        ]
    )
    return _table(" | ".join(["layers replaced", *map(str, counts)]), rows)


def decode(results: Results) -> str:
    rows = []
    for one in results["decode"]:
        walls = sorted(one["wall_seconds_per_token"])
        rows.append(
            [
                one["model"],
                f"{one['context']:,}",
                f"{1e3 * walls[len(walls) // 2]:,.0f} ({1e3 * walls[0]:,.0f} to {1e3 * walls[-1]:,.0f})",
                f"{1e3 * one['processor_seconds_per_token']:,.0f}",
                f"{one['state_bytes_float32'] / MIB:,.1f}",
                f"{one['state_bytes_bfloat16_computed'] / MIB:,.1f}",
            ]
        )
    heads = "model | context | ms a token, median (least to most) | processor ms a token"
    heads += " | MiB of states, float32, measured | bfloat16, computed"
    return _table(heads, rows)


def finetune(results: Results) -> str:
    found = results["finetune"]
    names = {
        "before": "the gates' hybrid",
        "kl": "after the KL stage",
        "long": "after longer sequences",
    }
    rows = []
    for name, title in names.items():
        if name not in found["heldout"]:
            continue
        one, old = found["heldout"][name], found["heldout"]["before"]
        keys, gaps = ("kl", "loss", "needle_nll"), [""] * 3
        if name != "before":
            gaps = [verdict(one[key], old[key]) for key in keys]
        pairs = zip(keys, gaps)
        rows.append([title, *(x for key, gap in pairs for x in (_shown(interval(one[key])), gap))])
    return _table(
        "model | KL to the teacher | change | loss | change | needle, nats a token | change", rows
    )


def usage(results: Results) -> str:
    groups: dict[str, list[float]] = {}
    for line in results["usage"]:
        name, _, stopped = line["stage"].partition(", ")
        stage = "student" if name == "blockwise: student" else name.partition(":")[0]
        total = groups.setdefault(stage, [0.0, 0.0, 0.0])
        total[0] += line["processor_seconds"] / 60
        total[1] += line["wall_seconds"] / 60
        if not stopped:  # what was stopped to be made smaller is not what the stage takes
            total[2] = max(total[2], line["peak_memory_bytes"] / 2**30)
    processor = sum(x[0] for x in groups.values())
    rows = [[name, f"{a:.1f}", f"{b:.1f}", f"{c:.1f}"] for name, (a, b, c) in groups.items()]
    most = max(x[2] for x in groups.values())
    # Stages run beside each other, so their minutes have no sum.
    rows.append(["all", f"{processor:.1f}", "", f"{most:.1f}"])
    return _table("stage | processor minutes | minutes, as run | GiB of memory at most", rows)


def costs(results: Results) -> str:
    rows = []
    for name, one in results["costs"].items():
        hours = one["flops"] / (SHARE * A800) / 3600
        rows.append(
            [
                name,
                f"{one['parameters'] / 1e9:.2f}B",
                f"{one['tokens'] / 1e6:,.0f}M",
                f"{one['flops']:.1e}",
                f"{hours:,.1f}",
                f"{one['memory_bytes'] / 2**30:,.0f} GiB",
            ]
        )
    heads = "budget | student's parameters | tokens | training FLOPs | A800 hours | memory"
    return _table(heads, rows)


def compiled(results: Results) -> str:
    """The compiler's reports; budgets without one say so."""
    rows = []
    for name in results["costs"]:
        one = results["compiled"].get(name)
        if one is None:
            rows.append([name, "not compiled", "", "", "", ""])
            continue
        seconds = one.get("step_seconds_at_least")
        least = "" if seconds is None else f"{seconds:.3g}, {one['limit']}"
        memory = "unknown" if one["total"] is None else f"{one['total'] / 2**30:.1f}"
        rows.append(
            [
                name,
                one["topology"],
                f"{memory} of {one['available'] / 2**30:.1f}",
                "yes" if one["fits"] else "no",
                least,
                f"{one['lower_seconds']:.0f} + {one['compile_seconds']:.0f}",
            ]
        )
    heads = "budget | chips | GiB of a chip | fits | seconds a step at least, bound by"
    return _table(f"{heads} | seconds of tracing + compiling", rows)


A800, SHARE = 312e12, 0.4  # FLOP/s in bfloat16 of the papers' chip, and the share that is assumed


def final_error(arm: Results) -> float:
    """The relative error, as a mean over the last steps."""
    return sum(arm["relative_error"][-LAST:]) / LAST


def final_mse(arm: Results) -> list[float]:
    """The squared error of each layer, as a mean over the last steps."""
    return [sum(values) / LAST for values in zip(*arm["mse"][-LAST:])]


def _of_layers(arm: Results, errors: Sequence[float], others: Sequence[float]) -> str:
    """The number of layers whose error is below the other one, of all that the arm has."""
    lower = sum(a < b for a, b in zip(errors, others, strict=True))
    return f"{lower} of {len(arm['layers'])}"


def curve_points(results: Results) -> dict[str, dict[int, list[float]]]:
    """By method and number of replaced layers, the metric on each evaluation set."""
    found, lines = results["selections"], {}
    total = len(found["layers"])
    for point in found["curve"]:
        lines.setdefault(point["method"], {})[point["replaced"]] = point["values"]
    for one in found["selections"]:
        lines[one["method"]][total - len(one["kept"])] = one["values"]
    return lines


def alone(results: Results, metric: str) -> dict[int, list[float]]:
    """The metric on each set, of the models in which one layer is replaced, by that layer."""
    layers = set(results["selections"]["layers"])
    found = {}
    for row in results["evaluations"]:
        replaced = layers - set(row["kept"])
        if len(replaced) == 1 and row["metric"] == metric:
            found[replaced.pop()] = row["values"]
    return dict(sorted(found.items()))


def random_means(results: Results) -> dict[int, list[float]]:
    """By number of replaced layers, the metric's mean over sets of each random draw."""
    found: dict[int, list[float]] = {}
    for n, values in curve_points(results)["random"].items():
        if n:
            found[n] = [interval(values).mean]
    for point in results["more"]["random"]:
        found[point["replaced"]].append(interval(point["values"]).mean)
    return found


def _has(results: Results, name: str) -> bool:
    needed = {"selections": ("selections", "more"), "curve": ("selections", "more")}
    return all(part in results for part in needed.get(name, (name,)))


def _shown(one: Interval) -> str:
    return str(one)


def verdict(a: Sequence[float], b: Sequence[float]) -> str:
    """a - b, paired, and whether it is beyond noise.

    From 6 pairs on, the two-sided sign-flip test says so, which is exact: one outlier widens an interval of
    Student's t until it holds 0, even where all pairs agree. With fewer pairs it cannot reach the level, and
    Student's t decides.
    """
    gap, d = difference(a, b), [x - y for x, y in zip(a, b, strict=True)]
    if not (2 / 2 ** len(d) <= LEVEL and len(d) <= MOST_PAIRS and all(map(math.isfinite, d))):
        return f"{gap}{', within noise' if gap.holds_zero else ''}"
    p = two_sided(Bounds.known(d))
    ways = (sum(x > 0 for x in d), "up"), (sum(x < 0 for x in d), "down")
    agree = "".join(f", all {n} {way}" for n, way in ways if n == len(d))
    return f"{gap}{agree}, p {p:.2g}{'' if p <= LEVEL else ', within noise'}"


def _table(heads: str, rows: Sequence[Sequence[Any]]) -> str:
    columns = heads.count("|") + 1
    lines = [f"| {heads} |", "|---" * columns + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])

"""benchmarks/gpu.md from the records of a visit."""

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_visit.plan import CUDNN_PACKED, EVERY_OP, HYBRID_OP, JLA, KERNEL
from benchmarks.gpu_visit.runner import outcomes

Record = dict[str, Any]
DIRECTIONS = ("forward", "forward + backward")


def render(records: Sequence[Record], planned: Sequence[str] = ()) -> str:
    """The page.

    Args:
      planned: names of all items, so that those without a record are listed too.
    """
    lines = ["# On a Hopper GPU", "", *_head(records), "", *_aims(records), *_numbers(records)]
    lines += [*_times(records), *_steps(records), *_retrieval(records)]
    lines += [*_text(records), *_endings(records, planned)]
    return "\n".join(lines) + "\n"


def _of(records: Sequence[Record], kind: str) -> list[Record]:
    return [r for r in records if r["kind"] == kind]


def _last(records: Sequence[Record], kind: str) -> Record:
    found = _of(records, kind)
    return found[-1] if found else {}


def _head(records: Sequence[Record]) -> list[str]:
    about, card, peaks = (_last(records, kind) for kind in ("versions", "card", "peaks"))
    facts = [f"{k} {v}" for k, v in card.get("facts", {}).items()]
    tested = [f"{k} {v}" for k, v in about.get("versions", {}).items()]
    machine = ", ".join([card.get("chip", "an unknown device"), *facts])
    lines = [
        f"Made by `python -m benchmarks.gpu_visit` on {about.get('date', 'an unknown day')}:"
        f" {machine}; {', '.join(tested) or 'versions unknown'}.",
        "",
    ]
    if peaks:
        lines += [
            f"Measured in the same run: {peaks['flops'] / 1e12:.0f} TFLOP/s of a bfloat16 product,"
            f" {peaks['bandwidth'] / 1e12:.2f} TB/s of a copy."
        ]
    else:
        lines += ["The peaks were not measured, so there are no shares of the roofline."]
    return [
        *lines,
        "What is not here was not measured, and why stands at the end.",
    ]


def _aims(records: Sequence[Record]) -> list[str]:
    """What was aimed at, and what was measured at the worst length, forward and backward."""
    seconds = {
        (r["op"], r["form"], r["tokens"]): r["seconds"][DIRECTIONS[1]]
        for r in _of(records, "times")
        if not r["sizes"]
    }
    lengths = sorted({tokens for *_, tokens in seconds})
    rows = []
    for op, rivals in EVERY_OP.items():
        rival = CUDNN_PACKED if op.startswith("attention, window") else JLA
        keys = [((op, rival, n), (op, KERNEL, n)) for n in lengths]
        found = [seconds[a] / seconds[b] for a, b in keys if a in seconds and b in seconds]
        if found and rival in rivals and op != "attention, full":
            rows.append((f"{op}: as fast as {rival}", ">= 1.00", min(found), min(found) >= 1))
    parts = (HYBRID_OP, "gated_slots", "attention, window 512")
    keys = [[(op, KERNEL, n) for op in parts] for n in lengths]
    found = [
        seconds[a] / (seconds[b] + seconds[c]) for a, b, c in keys if {a, b, c} <= set(seconds)
    ]
    if found:
        rows.append((f"{HYBRID_OP}: times its parts", "<= 1.30", max(found), max(found) <= 1.3))
    for r in _of(records, "step"):
        aim = 0.55 if r["name"] == "windowed" else 0.45
        if r["mfu"] is not None and r["kernels"]:
            rows.append((f"MFU of {r['name']}", f">= {aim:.2f}", r["mfu"], r["mfu"] >= aim))
    if not rows:
        return []
    lines = [
        "## Aims",
        "",
        "Forward and backward, at the worst length.",
        "",
        "| aim | | measured | |",
    ]
    lines += ["|---|--:|--:|---|"]
    lines += [f"| {a} | {b} | {c:.2f} | {'met' if met else 'missed'} |" for a, b, c, met in rows]
    return [*lines, ""]


def _title(record: Record) -> str:
    sizes = ", ".join(f"{k} {v}" for k, v in record["sizes"].items())
    return record["op"] + (f" ({sizes})" if sizes else "")


def _numbers(records: Sequence[Record]) -> list[str]:
    """Right or wrong, with the largest error by norm."""
    lines = [
        "## Numbers",
        "",
        "Errors against float64, by norm, the largest of the output and the gradients.",
    ]
    lines += ["", "| op | form | largest error | |", "|---|---|--:|---|"]
    for (title, form), r in _latest(_of(records, "numbers")).items():
        worst = max(r["errors"].items(), key=lambda pair: pair[1], default=None)
        said = f"{worst[1]:.1e} ({worst[0]})" if worst else "not finite"
        lines.append(f"| {title} | {form} | {said} | {'right' if r['right'] else '**wrong**'} |")
    return [*lines, ""] if len(lines) > 5 else []


def _latest(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    """The last record of each (op, form), in the plan's order."""
    order = {op: i for i, op in enumerate(EVERY_OP)}
    found = {(_title(r), r["form"]): r for r in records}
    return dict(sorted(found.items(), key=lambda pair: order.get(pair[1]["op"], len(order))))


def _times(records: Sequence[Record]) -> list[str]:
    timed, peaks, lines = _of(records, "times"), _last(records, "peaks"), []
    order = {op: i for i, op in enumerate(EVERY_OP)}
    titles = dict.fromkeys(
        _title(r) for r in sorted(timed, key=lambda r: order.get(r["op"], len(order)))
    )
    if titles:
        lines += [
            "## Times",
            "",
            "Medians in ms; in brackets the share of the roofline. A row has documents of",
        ]
        lines += ["1,024 tokens on average, or one where that is said.", ""]
    for title in titles:
        mine = [r for r in timed if _title(r) == title]
        lengths = sorted({r["tokens"] for r in mine})
        for direction in DIRECTIONS:
            lines += [f"### {title}, {direction}", ""]
            lines += ["| form | " + " | ".join(f"{n:,}" for n in lengths) + " |"]
            lines += ["|---|" + "--:|" * len(lengths)]
            for form in dict.fromkeys(r["form"] for r in mine):
                by_length = {r["tokens"]: r for r in mine if r["form"] == form}
                cells = [_cell(by_length.get(n), direction, peaks) for n in lengths]
                lines.append(f"| {form} | {' | '.join(cells)} |")
            lines.append("")
    return lines


def _cell(record: Record | None, direction: str, peaks: Record) -> str:
    if record is None:
        return ""
    seconds, task = record["seconds"][direction], record["work"][direction]
    if not peaks:
        return f"{1e3 * seconds:.3f}"
    floor = max(task["flops"] / peaks["flops"], task["bytes"] / peaks["bandwidth"])
    return f"{1e3 * seconds:.3f} ({floor / seconds:.0%})"


def _steps(records: Sequence[Record]) -> list[str]:
    lines = []
    for r in _of(records, "step"):
        low, high = r["spread"]
        kernels = ", ".join(r["kernels"]) or "none"
        mfu = "" if r["mfu"] is None else f"{r['mfu']:.1%}"
        memory = "" if r["memory"] is None else f"{r['memory'] / 2**30:.0f}"
        lines.append(
            f"| {r['name']} | {r['parameters'] / 1e9:.2f}B | {kernels} | {r['seconds']:.3f}"
            f" ({low:.3f} to {high:.3f}) | {r['tokens'] / r['seconds']:,.0f} | {mfu} | {memory} |"
        )
    if not lines:
        return []
    return [
        "## Training steps",
        "",
        "Three layers of the mixer to one of full attention; packed documents. MFU counts model FLOPs,"
        f" without recomputation, against the peak of the {_of(records, 'step')[-1]['peak']}.",
        "",
        "| hybrid | parameters | kernels | s a step | tokens/s | MFU | GiB |",
        "|---|--:|---|--:|--:|--:|--:|",
        *lines,
        "",
    ]


def _retrieval(records: Sequence[Record]) -> list[str]:
    last = {r["arm"]: r for r in _of(records, "retrieval")}
    if not last:
        return []
    lines = ["## Retrieval at 100M parameters", "", "The last measurement of each run of"]
    lines += [
        "[large-window laziness](../experiments/large_window_laziness/README.md), scale `large`.",
        "",
    ]
    lines += ["| arm | step | accuracy, near to far | far needle's mass | local nats | s |"]
    lines += ["|---|--:|---|--:|--:|--:|"]
    for r in last.values():
        accuracy = " ".join(f"{a:.2f}" for a in r["accuracy"])
        lines.append(
            f"| {r['arm']} | {r['step']} of {r['steps']} | {accuracy} | {r['mass']:.2f} |"
            f" {r['local_nll']:.3f} | {r['seconds']:.0f} |"
        )
    return [*lines, ""]


def _text(records: Sequence[Record]) -> list[str]:
    lines = [*_text_runs(_of(records, "text")), *_text_ends(_of(records, "text end"))]
    if not lines:
        return []
    about = (
        "Runs of [large-window laziness](../experiments/large_window_laziness/README.md#real-text)."
    )
    return ["## Retrieval on real text", "", f"{about} Distances grow to the right.", "", *lines]


def _text_runs(records: Sequence[Record]) -> list[str]:
    """The last measurement of each run."""
    last = {(r["arm"], r["seed"]): r for r in records}
    lines = []
    for r in last.values():
        spliced, natural = r["spliced"], r["natural"]
        cells = [_figures(x[n]) for x in (spliced, natural) for n in ("gain", "accuracy")]
        masses = sorted((head for head in r["heads"]), key=lambda head: -head[2])[:3]
        cells.append(", ".join(f"{layer}.{head} {mass:.2f}" for layer, head, mass, *_ in masses))
        cells += [f"{r['plain_nll']:.3f}", f"{r['wall_seconds']:.0f}"]
        step = f"{r['step']} of {r['steps']}"
        lines.append(f"| {r['arm']} | {r['seed']} | {step} | {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "The last measurement of each run: gain in nats and accuracy on repeats, and the layer, number and"
        " mass of the three heads of the largest mass.",
        "",
        "| arm | seed | step | gain, spliced | accuracy | gain, natural | accuracy | heads |"
        " nats, no repeats | s |",
        "|---|--:|--:|---|---|---|---|---|--:|--:|",
        *lines,
        "",
    ]


def _text_ends(records: Sequence[Record]) -> list[str]:
    """What was measured once a run was complete."""
    last = {(r["arm"], r["seed"]): r for r in records}
    masked, needles, longer = [], [], []
    for (arm, seed), r in last.items():
        run = f"| {arm} | {seed} |"
        heads = ", ".join(f"{layer}.{head}" for layer, head in r["masked_heads"])
        masked.append(f"{run} {heads} | {_named(r['masked'])} |")
        masked[-1] += f" {_named(r['restricted']['full'])} | {_named(r['restricted']['local'])} |"
        needle, long = r["needles"], r["longer"]
        needles.append(f"{run} {_figures(needle['accuracy'])} | {_figures(needle['nll'])} |")
        nats = _figures([long["plain_nll_within"], long["plain_nll_beyond"]], 3)
        far = (_figures(long["spliced"][n]) for n in ("gain", "accuracy"))
        longer.append(f"{run} {nats} | {' | '.join(far)} |")
    if not last:
        return []
    return [
        "At the end of a run: accuracy on the furthest spliced copies, with heads masked, and with the"
        " receptive field of full layers or of windowed ones restricted to so many tokens.",
        "",
        "| arm | seed | heads masked | accuracy | full layers see | windows |",
        "|---|--:|---|---|---|---|",
        *masked,
        "",
        "Needles, by distance:",
        "",
        "| arm | seed | accuracy | nats |",
        "|---|--:|---|---|",
        *needles,
        "",
        "At twice the training length: nats of tokens that are no repeat, within that length and beyond, and"
        " copies from further back than that length.",
        "",
        "| arm | seed | nats within, beyond | gain | accuracy |",
        "|---|--:|---|---|---|",
        *longer,
        "",
    ]


def _figures(values: Sequence[float | None], digits: int = 2) -> str:
    """A dash where there was nothing to measure."""
    return " ".join("-" if x is None else f"{x:.{digits}f}" for x in values)


def _named(figures: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {_figures([x])}" for name, x in figures.items())


def _endings(records: Sequence[Record], planned: Sequence[str]) -> list[str]:
    """What is not right, with the reason; then what has not run."""
    ended = outcomes(records)
    failed = [e for e in ended.values() if e["outcome"] not in ("done", "not run")]
    left = [n for n in planned if n not in ended or ended[n]["outcome"] == "not run"]
    lines = []
    if failed:
        lines += ["## What failed", ""]
        lines += [f"- {e['item']}: {e['outcome']}. {_flat(e.get('why', ''))}" for e in failed]
        lines += [""]
    if left:
        lines += ["## What has not run", "", *(f"- {name}" for name in left), ""]
    return lines


def _flat(text: str) -> str:
    return " ".join(text.replace("|", "/").split())

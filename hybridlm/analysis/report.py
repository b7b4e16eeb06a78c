"""`report.html`: one file with a run's curves, model, data, cost and reproduction."""

import html
import itertools
import pathlib
from typing import Any

from matplotlib.figure import Figure

from hybridlm.analysis import figures
from hybridlm.analysis.run import Run
from hybridlm.config import to_dict
from hybridlm.models.accounting import STATE_LENGTHS, LayerCost, active_parameters, layer_table
from hybridlm.models.params import Model
from hybridlm.progress import doing, duration
from hybridlm.runs import lineage
from hybridlm.runs.workdir import REPORT
from hybridlm.settings import json_text
from hybridlm.storage import open_path, own_name
from hybridlm.storage.writing import write_text


def write_report(workdir: pathlib.Path | str) -> pathlib.Path:
    """Writes the report of the run in `workdir`, finished or not, and returns its path.

    Raises:
      RunError: if `workdir` is not a run. WriteError: if the report cannot be written.
    """
    with doing("writing the report"):
        return _write_report(open_path(workdir))


def _write_report(workdir: pathlib.Path) -> pathlib.Path:
    run = Run(workdir)
    name = html.escape(own_name(run.path))
    sections = [
        f"<h1>{name}</h1>{_summary(run)}",
        _curves(run),
        _model(run),
        _data(run),
        _sample(run),
        _speed(run),
        _reproduce(run),
    ]
    page = PAGE.format(title=name, style=STYLE, body="\n".join(s for s in sections if s))
    target = run.path / REPORT
    write_text(target, page, errors="backslashreplace")  # a path in the command may not be UTF-8
    return target


def _summary(run: Run) -> str:
    total, done = run.config.train.steps, run.steps_done
    state = "" if done >= total else f"<p class=warn>Unfinished: step {done:,} of {total:,}.</p>"
    if run.lineage:
        begun = html.escape(lineage.described(run.lineage))
        state += f"<p class=note>Begun from {begun}.</p>"
    cards = []
    if run.eval_records:
        last = run.eval_records[-1]
        cards.append((f"{last['bits_per_byte']:.3f}", "bits per byte, held out"))
        cards.append((f"{last['loss']:.3f}", "nats a token, held out"))
        if "ema_loss" in last:
            cards.append((f"{last['ema_loss']:.3f}", "nats of the moving average"))
    bigram = run.facts.get("bigram")
    if bigram:
        cards.append((f"{bigram['bits_per_byte']:.3f}", "bits per byte of a bigram model"))
    if run.facts:
        cards.append((_count(run.facts["parameters"]), "parameters"))
        if "active_parameters" in run.facts:
            cards.append((_count(run.facts["active_parameters"]), "of them for each token"))
        if "trained_parameters" in run.facts:
            cards.append((_count(run.facts["trained_parameters"]), "of them trained"))
        records = run.train_records
        tokens = done * run.config.tokens_per_step
        tokens = records[-1].get("tokens", tokens) if records else tokens
        cards.append((_count(tokens), "training tokens, padding included"))
    if run.train_records:
        speed = run.train_records[-1]["tokens_per_second"]
        cards.append((f"{speed:,.0f}", "tokens a second, padding included"))
    shown = "".join(f"<div><b>{html.escape(v)}</b><span>{t}</span></div>" for v, t in cards)
    return f"{state}<div class=cards>{shown}</div>"


def _curves(run: Run) -> str:
    train, evals = run.train_records, run.eval_records
    if not train and not evals:
        return "<h2>Training</h2><p>Nothing is on record yet.</p>"
    shown = [figures.loss_figure(train, evals, run.facts.get("bigram"))]
    if evals:
        shown.append(figures.position_figure(evals))
    if train:
        shown.append(figures.optimization_figure(train))
    skipped = train[-1]["skipped"] if train else 0
    note = f"<p class=warn>{skipped} updates were skipped.</p>" if skipped else ""
    return "<h2>Training</h2>" + note + "".join(map(_figure, shown))


def _model(run: Run) -> str:
    config = run.config.model
    layers = config.layer_mixers()
    model = Model.of(config)
    rows = layer_table(model, run.config.data.seq_len)
    total_flops = sum(r.flops_per_token for r in rows)
    lengths = [f"state at {figures.token_label(n)}" for n in STATE_LENGTHS]
    head = ["layer", "mixer", "mechanism", "parameters", "FLOPs/token", "share", *lengths]
    mixtures = {f.mechanism for f in config.layer_feedforwards() if f.kind_name == "moe"}
    active = ""
    if mixtures:
        used = active_parameters(model)
        active = (
            f"<p class=note>{_count(used)} parameters are used by each token. Mixtures of experts:"
            f" {', '.join(sorted(mixtures))}.</p>"
        )
    body = [
        [place, row.name, row.mechanism, *_cost(row, count, total_flops)]
        for place, row, count in _folded(rows)
    ]
    sums = LayerCost(
        "",
        "",
        sum(r.parameters for r in rows),
        total_flops,
        tuple(map(sum, zip(*(r.state_bytes for r in rows)))),
    )
    body.append(["", "all", "", *_cost(sums, 1, total_flops)])
    return (
        "<h2>Model</h2>"
        + _figure(figures.pattern_figure(layers, run.config.data.seq_len))
        + _table(head, body, numbers_from=3)
        + active
        + "<p class=note>FLOPs of the forward pass at"
        f" {run.config.data.seq_len:,} tokens; a multiply-add counts 2, causal attention counts the"
        " keys it sees. State: bytes a sequence holds while decoding, bfloat16 caches, float32"
        " recurrent states.</p>" + _figure(figures.state_figure(layers, config.width))
    )


def _cost(row: LayerCost, count: int, total_flops: float) -> list[str]:
    return [
        f"{count * row.parameters:,}",
        f"{count * row.flops_per_token / 1e6:,.3f} M",
        f"{count * row.flops_per_token / total_flops:.1%}",
        *(_bytes(count * n) for n in row.state_bytes),
    ]


def _folded(rows: list[LayerCost]) -> list[tuple[str, LayerCost, int]]:
    """(layer numbers, row, number of layers); in deep models, equal neighbours share a line."""
    numbered, shown = list(enumerate(rows[1:-1])), [("", rows[0], 1)]
    if len(numbered) <= 24:
        shown += [(str(i), row, 1) for i, row in numbered]
    else:
        for row, group in itertools.groupby(numbered, key=lambda item: item[1]):
            places = [i for i, _ in group]
            text = f"{places[0]}-{places[-1]}" if len(places) > 1 else str(places[0])
            shown.append((text, row, len(places)))
    return [*shown, ("", rows[-1], 1)]


def _data(run: Run) -> str:
    sources = run.facts.get("data", {}).get("sources", {})
    if not sources:
        return ""
    head = ["source", "share", "split", "documents", "tokens", "text", "epochs"]
    body = []
    for name, source in sources.items():
        for split in ("train", "heldout"):
            counts = source[split]
            epochs = f"{source.get('epochs', 0):.3g}" if split == "train" else ""
            body.append(
                [
                    name,
                    f"{source['weight']:.1%}",
                    {"heldout": "held out"}.get(split, split),
                    f"{counts['documents']:,}",
                    f"{counts['tokens']:,}",
                    _bytes(counts["bytes"]),
                    epochs,
                ]
            )
    data = run.config.data
    note = (
        f"Tokenizer: {data.tokenizer.kind}. Sequences of {data.seq_len:,} tokens, {data.batch_size}"
        f" a step, packing {data.packing}; attention across documents is"
        f" {'on' if data.cross_document_attention else 'off'}."
    )
    return (
        f"<h2>Data</h2>{_table(head, body, numbers_from=3)}<p class=note>{html.escape(note)}</p>"
        + _seen(run)
    )


def _seen(run: Run) -> str:
    rows = run.seen()
    if not rows:
        return ""
    head = ["source", "share asked", "share seen", "sequences", "documents", "tokens", "epochs"]
    body = [[row.name, *row.cells()] for row in rows]
    return (
        _table(head, body, numbers_from=1)
        + f"<p class=note>What the run had seen after step {run.steps_done:,}; a document or token"
        " counts as often as it was read.</p>"
    )


def _sample(run: Run) -> str:
    sample = run.sample
    if not sample:
        return ""
    settings = run.config.sample
    how = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}"
    return (
        f"<h2>Sample</h2><p class=note>Step {sample['step']:,}, {how}; the prompt is set in bold."
        f"</p><pre class=sample><b>{html.escape(sample['prompt'])}</b>"
        f"{html.escape(sample['text'])}</pre>"
    )


def _speed(run: Run) -> str:
    if not run.train_records:
        return ""
    last, facts = run.train_records[-1], run.facts
    rows = [["tokens a second, padding included", f"{last['tokens_per_second']:,.0f}"]]
    if "real_tokens_per_second" in last:
        rows.append(["tokens a second of documents", f"{last['real_tokens_per_second']:,.0f}"])
    if "mfu" in last:
        peak = f"{facts.get('peak_flops', 0) / 1e12:.3g} TFLOP/s, {facts.get('peak_source', '')}"
        rows.append(["MFU, padding included", f"{last['mfu']:.1%} of {peak}"])
    if "real_mfu" in last:
        rows.append(["MFU of documents", f"{last['real_mfu']:.1%}"])
    rows += [
        ["training FLOPs a token", f"{facts.get('flops_per_token', 0) / 1e6:,.2f} M"],
        ["step, median", f"{1e3 * last['step_seconds_p50']:,.1f} ms"],
        ["step, 90th percentile", f"{1e3 * last['step_seconds_p90']:,.1f} ms"],
        ["waiting for data", f"{last['data_wait_share']:.2%} of the time"],
        ["compilation", duration(last["compile_seconds"])],
        ["memory in use", _bytes(last["memory_bytes"] or 0)],
    ]
    return "<h2>Speed</h2>" + _table([], rows, numbers_from=9)


def _reproduce(run: Run) -> str:
    environment = run.environment
    config = html.escape(json_text.dumps(to_dict(run.config), indent=2))
    details = f"<details><summary>The resolved config</summary><pre>{config}</pre></details>"
    if not environment:
        return f"<h2>Reproduce</h2>{details}"
    commit = environment.get("git_commit") or "not a git checkout"
    if environment.get("git_changes"):
        commit += ", with uncommitted changes"
    rows = [
        ["started", ", ".join(environment.get("sessions", []))],
        ["git commit", commit],
        ["Python", f"{environment['python']} on {environment['system']}"],
        ["devices", ", ".join(environment["devices"])],
        ["CPUs", str(environment["cpus"])],
        ["packages", ", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v)],
        ["variables", ", ".join(f"{k}={v}" for k, v in environment["variables"].items()) or "none"],
    ]
    command = html.escape(environment["command"])
    return (
        f"<h2>Reproduce</h2><pre class=command>{command}</pre>"
        + _table([], rows, numbers_from=9)
        + details
    )


def _table(head: list[str], rows: list[list[Any]], numbers_from: int) -> str:
    def cells(row: list[Any], tag: str) -> str:
        kinds = ["" if i < numbers_from else " class=n" for i in range(len(row))]
        return "".join(f"<{tag}{k}>{html.escape(str(v))}</{tag}>" for v, k in zip(row, kinds))

    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<div class=wide><table>{top}<tbody>{body}</tbody></table></div>"


def _figure(figure: Figure) -> str:
    return f"<figure>{figures.to_svg(figure)}</figure>"


def _bytes(count: float) -> str:
    if count == 0:
        return "0"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def _count(count: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""

STYLE = """
:root { --ink: #222; --soft: #666; --line: #ddd; --ground: #fff; --card: #f6f6f4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a0a0a0; --line: #3a3a3a; --ground: #161616; --card: #222; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .8rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: .6rem; }
.cards div { background: var(--card); border-radius: 8px; padding: .7rem .8rem; }
.cards b { display: block; font-size: 1.35rem; font-weight: 600; }
.cards span, .note { color: var(--soft); font-size: .86rem; }
.warn { border-left: 4px solid #D55E00; padding-left: .7rem; }
figure { margin: .8rem 0; background: #fff; border-radius: 8px; padding: .4rem; }
figure svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: .28rem .6rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:nth-child(3):not(.n) { white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
pre { background: var(--card); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .86rem; }
"""

"""The sections of the report of one run, and those of a model that other reports share."""

import html
import itertools

from hybridlm.analysis import figures
from hybridlm.analysis.figures import token_label
from hybridlm.analysis.figures.style import finite
from hybridlm.analysis.measurements import measured_at, newest, weights_of
from hybridlm.analysis.report.distillation import distillation
from hybridlm.analysis.report.parts import (
    Parts,
    bytes_text,
    cards,
    count_text,
    grid,
    plain_table,
    section,
)
from hybridlm.analysis.rows import Row, layer_rows, state_rows
from hybridlm.analysis.run import Results, Run
from hybridlm.config import to_dict
from hybridlm.models.accounting import STATE_LENGTHS, LayerCost, active_parameters, layer_table
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.progress import duration
from hybridlm.runs import lineage
from hybridlm.settings import json_text


def run_sections(run: Run) -> tuple[Parts, str]:
    """The report of a run: the parts' data, and HTML."""
    parts = Parts()
    code = f"Run({str(run.path)!r})"
    sections = [
        _summary(run),
        _curves(parts, run, code),
        distillation(parts, run, code),
        evaluations(parts, run, code),
        probes(parts, run.probe_rows(), code),
        model_section(parts, run.config.model, run.config.data.seq_len, f"{code}.config.model"),
        _data(run),
        _sample(run),
        _speed(run),
        _reproduce(run),
    ]
    return parts, "\n".join(filter(None, sections))


def _summary(run: Run) -> str:
    total, done = run.config.train.steps, run.steps_done
    state = "" if done >= total else f"<p class=warn>Unfinished: step {done:,} of {total:,}.</p>"
    if run.lineage:
        begun = html.escape(lineage.described(run.lineage))
        state += f"<p class=note>Begun from {begun}.</p>"
    found = []
    if run.eval_records:
        last = run.eval_records[-1]
        found.append((f"{last['bits_per_byte']:.3f}", "bits per byte, held out"))
        found.append((f"{last['loss']:.3f}", "nats a token, held out"))
        if "ema_loss" in last:
            found.append((f"{last['ema_loss']:.3f}", "nats of the moving average"))
    bigram = run.facts.get("bigram")
    if bigram:
        found.append((f"{bigram['bits_per_byte']:.3f}", "bits per byte of a bigram model"))
    if run.facts:
        found.append((count_text(run.facts["parameters"]), "parameters"))
        if "active_parameters" in run.facts:
            found.append((count_text(run.facts["active_parameters"]), "of them for each token"))
        if "trained_parameters" in run.facts:
            found.append((count_text(run.facts["trained_parameters"]), "of them trained"))
        records = run.train_records
        tokens = done * run.config.tokens_per_step
        tokens = records[-1].get("tokens", tokens) if records else tokens
        found.append((count_text(tokens), "training tokens, padding included"))
    if run.train_records:
        speed = run.train_records[-1]["tokens_per_second"]
        found.append((f"{speed:,.0f}", "tokens a second, padding included"))
    return state + cards(found)


def _curves(parts: Parts, run: Run, code: str) -> str:
    train, evals, places = run.rows("train"), run.rows("eval"), run.position_rows()
    if not train and not evals:
        return "<h2>Training</h2><p>Nothing is on record yet.</p>"
    bigram = run.facts.get("bigram", {}).get("bits_per_byte")
    baseline = "" if bigram is None else f", bigram={bigram:.4f}"
    shown = [
        parts.figure(
            "Loss",
            figures.loss_curve(train, evals, bigram),
            f'run = {code}\nfigures.loss_curve(run.metrics(), run.metrics("eval"){baseline})',
            evals or train,
        )
    ]
    if places:
        shown.append(
            parts.figure(
                "Held-out loss by position",
                figures.loss_by_position(places),
                f"figures.loss_by_position({code}.by_position())",
                places,
            )
        )
    if train:
        for key, title in (
            ("learning_rate", "Learning rate"),
            ("grad_norm", "Gradient norm, before clipping"),
        ):
            made = f'figures.progress_curve({code}.metrics(), "{key}")'
            points = [{"step": r["step"], key: r.get(key)} for r in train]
            shown.append(parts.figure(title, figures.progress_curve(train, key), made, points))
    skipped = run.train_records[-1]["skipped"] if train else 0
    note = f"<p class=warn>{skipped} updates were skipped.</p>" if skipped else ""
    return section("Training", note, grid(*shown))


def evaluations(parts: Parts, results: Results, code: str) -> str:
    """Results of `hybridlm eval`: a table of all, and heat maps of the newest of each weights.

    Args:
      code: that opens the results.
    """
    rows, depths = results.evaluation_rows(), results.depth_rows()
    if not rows:
        return ""
    columns = {"task": "task", "length": "length", "step": "step", "weights": "weights"}
    columns |= {"figure": "figure", "value": "value", "samples": "samples", "folder": "folder"}
    columns = {k: v for k, v in columns.items() if any(r.get(k) not in (None, "") for r in rows)}
    shown = []
    needles = [r for r in depths if r["task"] == "needle"]
    for weights in weights_of(needles):
        found = newest(needles, weights)
        made = f"figures.needle_map(newest({code}.by_depth(), {weights!r}))"
        title = f"Needle in a haystack: {measured_at(found)}"
        shown.append(parts.figure(title, figures.needle_map(found), made, found))
    accuracies = [r for r in rows if r["figure"] == "accuracy"]
    for weights in weights_of(accuracies) if len({r["task"] for r in accuracies}) > 1 else ():
        found = newest(accuracies, weights)
        made = f"figures.task_map(newest({code}.evaluations(), {weights!r}))"
        title = f"Accuracy by task and length: {measured_at(found)}"
        shown.append(parts.figure(title, figures.task_map(found), made, found))
    commands = html.escape("\n".join(results.evaluation_commands()))
    made = f"<pre class=made>{commands}</pre>"
    return section("Evaluations", grid(*shown), parts.table("Results", rows, columns), made)


def probes(parts: Parts, rows: list[Row], code: str) -> str:
    """Results of probes: heads over training, and a table of every other probe."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row["probe"], []).append(row)
    shown = []
    for kind, score, title in (
        ("retrieval_heads", "mass", "Retrieval heads: attention on the needle"),
        ("retrieval_heads", "copy", "Retrieval heads: share of the answer copied"),
        ("entropy", "entropy", "Attention entropy of heads"),
        ("induction_heads", "score", "Induction heads"),
        ("qk_distance", "relative", "Distance of queries and keys to their end"),
    ):
        found = kinds.get(kind, [])
        if any(finite(r.get(score)) and r[score] for r in found):
            made = f'figures.head_map({code}.probes("{kind}"), score="{score}")'
            shown.append(parts.figure(title, figures.head_map(found, score=score), made, found))
    influence = kinds.get("gradient_influence", [])
    if influence:
        made = f'figures.by_distance({code}.probes("gradient_influence"))'
        drawn = figures.by_distance(influence)
        shown.append(parts.figure("Influence of earlier inputs", drawn, made, influence))
    tables = [
        _details(f"{kind}: {len(found):,} entries", _probe_table(parts, kind, found))
        for kind, found in kinds.items()
    ]
    return section("Probes", grid(*shown), *tables)


def _probe_table(parts: Parts, kind: str, rows: list[Row]) -> str:
    """The newest step's entries; the download has all steps."""
    newest = max((r["step"] for r in rows if r["step"] is not None), default=None)
    shown = [r for r in rows if r["step"] == newest] if kind != "cost" else rows[-40:]
    left = "" if len(shown) == len(rows) else f", step {newest:,}"
    hidden = {"probe", "tokens", "flops", "folder"}
    columns = {k: k for row in shown for k in row if k not in hidden}
    return parts.table(f"{kind}{left}", shown, columns, download=rows)


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def model_section(parts: Parts, config: ModelConfig, length: int, opened: str) -> str:
    """The layers of a model, their costs and states, at a length of context.

    Args:
      opened: code that gives the model's config, for the figures' captions.
    """
    model = Model.of(config)
    rows = layer_table(model, length)
    total_flops = sum(r.flops_per_token for r in rows)
    lengths = [f"state at {token_label(n)}" for n in STATE_LENGTHS]
    head = ["layer", "mixer", "mechanism", "parameters", "FLOPs/token", "share", *lengths]
    mixtures = {f.mechanism for f in config.layer_feedforwards() if f.kind_name == "moe"}
    active = ""
    if mixtures:
        used = active_parameters(model)
        active = (
            f"<p class=note>{count_text(used)} parameters are used by each token. Mixtures of experts:"
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
    layers, states = layer_rows(config, length), state_rows(config)
    drawn = grid(
        parts.figure(
            "Layer pattern, and how far back each layer sees",
            figures.layer_pattern(layers, length=length),
            f"figures.layer_pattern(layer_rows({opened}, {length}), length={length})",
            layers,
        ),
        parts.figure(
            "State while decoding",
            figures.state_sizes(states),
            f"figures.state_sizes(state_rows({opened}))",
            states,
        ),
    )
    return section(
        "Model",
        drawn,
        plain_table(head, body, numbers_from=3),
        active,
        f"<p class=note>FLOPs of the forward pass at {length:,} tokens; a multiply-add counts 2,"
        " causal attention counts the keys it sees. State: bytes a sequence holds while decoding,"
        " bfloat16 caches, float32 recurrent states.</p>",
    )


def _cost(row: LayerCost, count: int, total_flops: float) -> list[str]:
    return [
        f"{count * row.parameters:,}",
        f"{count * row.flops_per_token / 1e6:,.3f} M",
        f"{count * row.flops_per_token / total_flops:.1%}",
        *(bytes_text(count * n) for n in row.state_bytes),
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
                    bytes_text(counts["bytes"]),
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
        f"<h2>Data</h2>{plain_table(head, body, numbers_from=3)}<p class=note>{html.escape(note)}</p>"
        + _seen(run)
    )


def _seen(run: Run) -> str:
    rows = run.seen()
    if not rows:
        return ""
    head = ["source", "share asked", "share seen", "sequences", "documents", "tokens", "epochs"]
    body = [[row.name, *row.cells()] for row in rows]
    return (
        plain_table(head, body, numbers_from=1)
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
        [
            "training FLOPs a token, a row as one document",
            f"{facts.get('flops_per_token', 0) / 1e6:,.2f} M",
        ],
        ["step, median", f"{1e3 * last['step_seconds_p50']:,.1f} ms"],
        ["step, 90th percentile", f"{1e3 * last['step_seconds_p90']:,.1f} ms"],
        ["waiting for data", f"{last['data_wait_share']:.2%} of the time"],
        ["compilation", duration(last["compile_seconds"])],
        ["memory in use", bytes_text(last["memory_bytes"] or 0)],
    ]
    return "<h2>Speed</h2>" + plain_table([], rows, numbers_from=9)


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
        + plain_table([], rows, numbers_from=9)
        + details
    )

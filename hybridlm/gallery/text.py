"""Fact sheets and the list of models as text."""

import textwrap
from collections.abc import Iterable

from hybridlm.gallery import numbers, words
from hybridlm.gallery.sheet import Sheet

LENGTHS = {4_096: "4k", 131_072: "128k", 1_048_576: "1M"}


def show(sheet: Sheet) -> str:
    """The whole sheet of one model."""
    facts, config = sheet.facts, sheet.config
    lines = {
        "model": f"{facts.title}, {facts.developer}, {facts.released}",
        "source": f"{facts.source}; weights {facts.upstream}",
        "parameters": _parameters(sheet),
        "published": words.published(facts),
        "decoder": words.decoder(sheet),
        "layers": f"{config.depth}: {words.mix(sheet)}",
        "width": f"{config.width:,}",
        "vocabulary": f"{config.vocab_size:,}, head {_head(sheet)}",
        "norms": words.norms(sheet),
        "residual stream": words.stream(sheet),
        "layers that share": words.sharing(sheet),
        "context": f"{facts.context:,} tokens",
        "KV per token": f"{numbers.kib(sheet.kv_bytes_per_token)} in bfloat16, as if no layer had a window",
    }
    width = max(map(len, lines)) + 2
    text = [
        textwrap.fill(value, 100, initial_indent=f"{name:{width}}", subsequent_indent=" " * width)
        for name, value in lines.items()
    ]
    notes = words.notes(facts)
    return "\n".join(
        [
            *text,
            "",
            *(textwrap.fill(line, 100, subsequent_indent="    ") for line in kinds(sheet)),
            "",
            *_lengths(sheet),
            *(["", *(textwrap.fill(note, 100) for note in notes)] if notes else []),
        ]
    )


def list_(sheets: Iterable[Sheet]) -> str:
    """One line a model: name, parameters, layers, bytes."""
    header = ("name", "total", "active", "KV/token", "cache at 128k", "layers")
    rows = [
        (
            sheet.name,
            numbers.count(sheet.parameters),
            numbers.count(sheet.active),
            numbers.kib(sheet.kv_bytes_per_token),
            numbers.gib(sheet.lengths[1].cache_bytes),
            words.mix(sheet),
        )
        for sheet in sheets
    ]
    return "\n".join(_table(header, rows, ">" * 5))


def _parameters(sheet: Sheet) -> str:
    embedding = f"embedding {numbers.count(sheet.embedding)}"
    if sheet.active == sheet.parameters:
        return f"{numbers.count(sheet.parameters)}, all active; {embedding}"
    return f"{numbers.count(sheet.parameters)}, {numbers.count(sheet.active)} of them active; {embedding}"


def _head(sheet: Sheet) -> str:
    return "tied to the embedding" if sheet.config.tie_embeddings else "of its own"


def kinds(sheet: Sheet) -> list[str]:
    """A line on each kind of layer: how many, mixer, feed-forward, parameters, keys and values."""
    lines = []
    for kind in sheet.kinds:
        parameters = numbers.count(kind.parameters)
        if kind.active != kind.parameters:
            parameters += f", {numbers.count(kind.active)} active"
        kv = (
            f"; KV {numbers.kib(kind.kv_bytes_per_token)} a token"
            if kind.kv_bytes_per_token
            else ""
        )
        halves = (
            words.long(kind.mixer, sheet.config.width) + words.beside(sheet, kind),
            words.feedforward(kind.feedforward),
        )
        what = "; ".join(half for half in halves if not half.startswith("no "))
        lines.append(f"{kind.count} x {kind.label}: {what} ({parameters}{kv})")
    return lines


def _lengths(sheet: Sheet) -> list[str]:
    header = ("tokens", "keys and values", "cache holds", "prefill/token", "decode/token")
    rows = [
        (
            LENGTHS[at.tokens],
            numbers.gib(at.kv_bytes),
            numbers.gib(at.cache_bytes),
            numbers.flops(at.prefill_flops),
            numbers.flops(at.decode_flops),
        )
        for at in sheet.lengths
    ]
    return _table(header, rows, ">" * 5)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]], align: str) -> list[str]:
    """Lines of a table whose last column is as wide as it is; `align` is of the others."""
    columns = list(zip(header, *rows))
    widths = [max(map(len, column)) for column in columns]
    align = "<" + align[1:] + "<" * len(columns)
    return [
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths)).rstrip()
        for row in (header, *rows)
    ]

"""One static page of all models: a table to search and sort, sheets, drawings, and differences.

The page is one file: its style, its script and its data are inside, and it loads nothing. It is
made of the files in `static`, in the shell of `hybridlm.pages`.
"""

from collections.abc import Iterable
from typing import Any

from hybridlm import pages
from hybridlm.gallery import numbers, text, words
from hybridlm.gallery.diagram import diagram
from hybridlm.gallery.drawing import RULES
from hybridlm.gallery.families import COLORS, families
from hybridlm.gallery.sheet import Sheet
from hybridlm.pages import shell

#: Columns of the table: key, heading, whether it holds numbers.
COLUMNS = (
    ("title", "Model", False),
    ("released", "Released", True),
    ("total", "Parameters", True),
    ("active", "Active", True),
    ("mix", "Layers", False),
    ("kv", "KV / token", True),
    ("cache_128k", "Cache at 128k", True),
    ("cache_1m", "Cache at 1M", True),
    ("context", "Context", True),
)


def page(sheets: Iterable[Sheet]) -> str:
    """The page of these models as HTML."""
    data = {
        "models": [_model(sheet) for sheet in sheets],
        "families": COLORS,
        "columns": [dict(key=k, label=label, number=n) for k, label, n in COLUMNS],
    }
    return pages.page(
        "Published hybrid language models",
        _static("page.html"),
        style=RULES + _static("page.css"),
        script=_static("page.js"),
        data=data,
    )


def _static(name: str) -> str:
    return shell.static(name, "hybridlm.gallery")


def _model(sheet: Sheet) -> dict[str, Any]:
    """What the script reads of a model."""
    facts, config = sheet.facts, sheet.config
    kinds = {kind.label: kind for kind in sheet.kinds}
    strip = [families(kinds[label].mixer) for label in config.layout.labels]
    mix = words.mix(sheet)
    experts = any(words.mixture(kind.feedforward) for kind in sheet.kinds)
    listed = fields(sheet)
    last = sheet.lengths[-1]
    amounts = {
        "total": sheet.parameters,
        "active": sheet.active,
        "kv": sheet.kv_bytes_per_token,
        "cache_128k": sheet.lengths[1].cache_bytes,
        "cache_1m": last.cache_bytes,
        "context": facts.context,
    }
    lines = text.kinds(sheet)
    return {
        "name": sheet.name,
        "title": facts.title,
        "developer": facts.developer,
        "released": facts.released,
        "source": facts.source,
        "upstream": facts.upstream,
        "mix": mix,
        "experts": experts,
        "families": sorted({family for names in strip for family in names}),
        "strip": strip,
        "order": {"title": facts.title, "released": facts.released, "mix": mix, **amounts},
        "cells": {
            "released": facts.released,
            "total": numbers.count(sheet.parameters),
            "active": numbers.count(sheet.active),
            "kv": numbers.kib(sheet.kv_bytes_per_token),
            "cache_128k": numbers.gib(sheet.lengths[1].cache_bytes),
            "cache_1m": numbers.gib(last.cache_bytes),
            "context": f"{facts.context:,}",
        },
        "search": " ".join([sheet.name, *map(str, (x[1] for x in listed)), *lines]).lower(),
        "fields": listed,
        "kinds": lines,
        "notes": words.notes(facts),
        "diagram": diagram(sheet, standalone=False),
    }


def fields(sheet: Sheet) -> list[tuple[str, str, float | None]]:
    """Label, text and number of every fact, in the same order for each model."""
    facts, config = sheet.facts, sheet.config
    found: list[tuple[str, str, float | None]] = [
        ("model", facts.title, None),
        ("developer", facts.developer, None),
        ("released", facts.released, None),
        ("parameters", numbers.count(sheet.parameters), sheet.parameters),
        ("active parameters", numbers.count(sheet.active), sheet.active),
        ("published", words.published(facts), None),
        ("decoder", words.decoder(sheet), None),
        ("layers", str(config.depth), config.depth),
        ("mixers", words.mix(sheet), None),
        ("attention", words.attention_kinds(sheet), None),
        ("positions", words.all_positions(sheet), None),
        ("feed-forwards", words.feedforwards(sheet), None),
        ("norms", words.norms(sheet), None),
        ("residual stream", words.stream(sheet), None),
        ("layers that share", words.sharing(sheet), None),
        ("width", f"{config.width:,}", config.width),
        ("vocabulary", f"{config.vocab_size:,}", config.vocab_size),
        ("head", "tied to the embedding" if config.tie_embeddings else "of its own", None),
        ("context", f"{facts.context:,}", facts.context),
        ("KV per token", numbers.kib(sheet.kv_bytes_per_token), sheet.kv_bytes_per_token),
    ]
    for at in sheet.lengths:
        length = text.LENGTHS[at.tokens]
        found += [
            (f"KV at {length}", numbers.gib(at.kv_bytes), at.kv_bytes),
            (f"cache at {length}", numbers.gib(at.cache_bytes), at.cache_bytes),
            (
                f"prefill FLOPs per token at {length}",
                numbers.flops(at.prefill_flops),
                at.prefill_flops,
            ),
            (
                f"decode FLOPs per token at {length}",
                numbers.flops(at.decode_flops),
                at.decode_flops,
            ),
        ]
    return found

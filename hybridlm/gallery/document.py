"""Writes the generated parts of `docs/gallery.md`: `python -m hybridlm.gallery.document`.

These are the list of models and the section on variants of attention, both computed from the recipes
in `configs`; the drawings are written to `docs/gallery`.
"""

import pathlib

from hybridlm import config as configs
from hybridlm import gallery
from hybridlm.gallery import numbers, words
from hybridlm.gallery.panels import picture
from hybridlm.gallery.sheet import Sheet, kv_bytes_per_token
from hybridlm.gallery.text import LENGTHS
from hybridlm.gallery.variants import VARIANTS, Variant
from hybridlm.models.settings import ModelConfig

PAGE = pathlib.Path("docs") / "gallery.md"
DRAWINGS = pathlib.Path("docs") / "gallery"
MARKS = {
    part: (f"<!-- {part}: generated -->", f"<!-- {part}: end -->")
    for part in ("models", "variants")
}


def models(sheets: list[Sheet]) -> str:
    """The table of models."""
    lines = [
        "| model | released | parameters | active | layers | KV per token | cache at 128k |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for sheet in sorted(sheets, key=lambda s: (s.facts.released, s.name), reverse=True):
        cells = (
            f"`{sheet.name}`",
            sheet.facts.released,
            numbers.count(sheet.parameters),
            numbers.count(sheet.active),
            words.mix(sheet),
            numbers.kib(sheet.kv_bytes_per_token),
            numbers.gib(sheet.lengths[1].cache_bytes),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def model_of(root: pathlib.Path, variant: Variant) -> ModelConfig:
    """The settings of the model that shows a variant."""
    return configs.load(str(root / "configs" / variant.recipe)).model


def drawing(root: pathlib.Path, variant: Variant) -> str:
    """A variant's drawing as SVG."""
    return picture(variant.title, model_of(root, variant), variant.layers)


def variants(root: pathlib.Path) -> str:
    """The section on variants of attention."""
    return "\n\n".join(_variant(root, variant) for variant in VARIANTS)


def _variant(root: pathlib.Path, variant: Variant) -> str:
    config = model_of(root, variant)
    lines = [
        f"### {variant.title}",
        f"![{variant.title}](gallery/{variant.slug}.svg)",
        f"$${variant.equation}$$",
        variant.text,
        f"Drawn from `configs/{variant.recipe}`:",
        "\n".join(_layer(config, name) for name in variant.layers),
    ]
    return "\n\n".join(lines)


def _layer(config: ModelConfig, name: str) -> str:
    """Settings of a layer in words, what a token adds to its cache, and what the cache holds."""
    mixer = config.mixers[name]
    held = ", ".join(
        f"{numbers.gib(mixer.state_bytes(config.width, tokens))} at {LENGTHS[tokens]}"
        for tokens in LENGTHS
    )
    adds = numbers.kib(kv_bytes_per_token(mixer, config.width))
    return (
        f"- `{name}`: {words.long(mixer, config.width)}. KV {adds} a token; its cache holds {held}."
    )


def written(text: str, parts: dict[str, str]) -> str:
    """The page with these parts between their marks."""
    for part, content in parts.items():
        begin, end = MARKS[part]
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    """Rewrites the page and the drawings in the working directory, a clone of the repository."""
    root = pathlib.Path()
    sheets = [gallery.sheet(gallery.load(name)) for name in gallery.names()]
    parts = {"models": models(sheets), "variants": variants(root)}
    PAGE.write_text(written(PAGE.read_text("utf-8"), parts), "utf-8")
    DRAWINGS.mkdir(exist_ok=True)
    for variant in VARIANTS:
        (DRAWINGS / f"{variant.slug}.svg").write_text(drawing(root, variant) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""Writes the table of families into docs/convert.md: `python -m hybridlm.convert.document`."""

import pathlib

from hybridlm.convert.registry import FAMILIES

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "convert.md"
BEGIN = "<!-- families: written by python -m hybridlm.convert.document -->"
END = "<!-- families: end -->"


def table() -> str:
    """A row for each family."""
    lines = ["| class of transformers | also read | models |", "|---|---|---|"]
    for family in FAMILIES:
        also = ", ".join(f"`{name}`" for name in family.also)
        lines.append(f"| `{family.architecture}` | {also} | {family.models} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the table of today's registry."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))

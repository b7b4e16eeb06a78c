"""Colours of pages and figures, in a light and a dark scheme."""

LIGHT = dict(
    ink="#1f2328", soft="#636c76", line="#c9ced4", ground="#ffffff", tint="#f3f4f5", mark="#b3261e"
)
DARK = dict(
    ink="#e6e6e6", soft="#9aa3ad", line="#4a5058", ground="#15171a", tint="#22262b", mark="#ff9a8f"
)

#: Lines and areas of figures: Okabe and Ito's colours, which colour-blind readers can distinguish.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#555555")
#: The same on a dark ground, where the first would be too dark.
DARK_PALETTE = (
    *("#4aa3df", "#f07f2e", "#2fc79b", "#e093bf", "#f2c230", "#9ad4f5", "#c4a264", "#a8a8a8"),
)


def scheme(colors: dict[str, str]) -> str:
    """Custom properties of one colour scheme, as the inside of a style rule."""
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


def both(light: str, dark: str) -> str:
    """Style rules that set properties of the page by the reader's choice, else the system's."""
    return "\n".join(
        [
            f":root {{ {light} }}",
            f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
            f':root[data-scheme="light"] {{ color-scheme: light; {light} }}',
            f':root[data-scheme="dark"] {{ color-scheme: dark; {dark} }}',
        ]
    )

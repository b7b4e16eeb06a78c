"""The shell of a page: one HTML file that holds its style, its script and its data.

It loads nothing from elsewhere. A page brings its body, and what it needs beyond `static/base.css`
and `static/base.js`.
"""

import html
import importlib.resources
import json
from typing import Any

from hybridlm.pages.scheme import DARK, LIGHT, both, scheme

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(title: str, body: str, *, style: str = "", script: str = "", data: Any = None) -> str:
    """A page as HTML.

    Args:
      title: text, of the window.
      body: HTML inside `main`.
      style: CSS after that of all pages.
      script: JavaScript after that of all pages.
      data: for JSON; the script finds it as `data`.
    """
    # "<" appears in no JSON but in strings, where its escape means the same.
    packed = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _PAGE.format(
        title=html.escape(title),
        style=f"{both(scheme(LIGHT), scheme(DARK))}\n{static('base.css')}{style}",
        body=body,
        data=packed.replace("<", "\\u003c"),
        script=f"{static('base.js')}{script}",
    )


def static(name: str, package: str = "hybridlm.pages") -> str:
    """The text of a file in the folder `static` of a package."""
    return (importlib.resources.files(package) / "static" / name).read_text("utf-8")

"""Names of runs and of their folders: readable, and determined by the run's settings alone.

The name does not depend on the other runs or their order, so that the names and workdirs of
existing runs do not change when runs are added to a sweep.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from hybridlm.settings import json_text

# Names omit these sections; no two of them have a key in common, which a test checks.
_OMITTED_SECTIONS = re.compile(r"^(model\.mixers|model|data|train|optimizer)\.")
_REPLACEMENTS = {" ": "+", "*": "@"}  # for patterns; shells and buckets accept + and @
_MAX_LENGTH = 120


def short_key(key: str) -> str:
    """`key` without its section, for tables and names: "optimizer.lr" becomes "lr"."""
    return _OMITTED_SECTIONS.sub("", key)


def run_name(settings: Mapping[str, Any]) -> str:
    """The name of the run that sets `settings` (dotted key -> resolved value).

    For example "lr=0.001,swa.window=64", or "base" without settings. The name ends with a hash of
    the settings if a value's text is ambiguous or the name would be too long.
    """
    if not settings:
        return "base"
    exact, parts = True, []
    for key, value in sorted(settings.items()):
        written, kept = _value_text(value)
        exact &= kept
        parts.append(f"{short_key(key)}={written}")
    name = ",".join(parts)
    if not exact or len(name) > _MAX_LENGTH:
        content = json_text.dumps(sorted(settings.items())).encode()
        name = f"{name[: _MAX_LENGTH - 9]}-{hashlib.sha256(content).hexdigest()[:8]}"
    return name


def dns_label(name: str, max_length: int) -> str:
    """`name` as a DNS label (lower case, digits, hyphens), for systems that require one.

    It ends with a hash of `name`, so that different names have different labels.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
    if not plain[0].isalpha():
        plain = f"r-{plain}"
    return f"{plain[: max_length - 9].strip('-')}-{digest}"


def _value_text(value: Any) -> tuple[str, bool]:
    """The text of a value in a name, and whether that text is unambiguous."""
    if not isinstance(value, str):
        written = re.sub(r"[^A-Za-z0-9.+-]+", "+", str(value)).strip("+")
        return written, not isinstance(value, list | dict)
    exact = re.fullmatch(r"[A-Za-z0-9_. *-]+", value) is not None
    written = "".join(_REPLACEMENTS.get(c, c) for c in value)
    return re.sub(r"[^A-Za-z0-9_.+@-]+", "-", written), exact

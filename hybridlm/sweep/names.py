"""Names of runs, which are names of folders: readable, and a function of a run's settings alone.

The name does not depend on the other runs, nor on their order, so that a sweep which grows keeps
the names, and so the workdirs, of the runs it had.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

# Sections whose keys go without the section: no two of them have a key in common (a test says so).
_UNSAID = re.compile(r"^(model\.mixers|model|data|train|optimizer)\.")
_SPOKEN = {" ": "+", "*": "@"}  # of patterns; neither is special to a shell or a bucket
_LONGEST = 120


def short_key(key: str) -> str:
    """`key` as tables and names show it: "optimizer.lr" is "lr"."""
    return _UNSAID.sub("", key)


def run_name(settings: Mapping[str, Any]) -> str:
    """The name of the run that sets `settings` (dotted key -> resolved value).

    "lr=0.001,swa.window=64"; "base" where nothing is set. Where a value cannot be told from the
    text that stands for it, or the name would be long, a hash of the settings ends the name.
    """
    if not settings:
        return "base"
    exact, parts = True, []
    for key, value in sorted(settings.items()):
        written, kept = _spoken(value)
        exact &= kept
        parts.append(f"{short_key(key)}={written}")
    name = ",".join(parts)
    if not exact or len(name) > _LONGEST:
        content = json.dumps(sorted(settings.items())).encode()
        name = f"{name[: _LONGEST - 9]}-{hashlib.sha256(content).hexdigest()[:8]}"
    return name


def label(name: str, longest: int) -> str:
    """`name` as a DNS label, for systems that take no other: lower case, digits, hyphens.

    Ends with a hash of `name`, so that two names have two labels.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
    if not plain[0].isalpha():
        plain = f"r-{plain}"
    return f"{plain[: longest - 9].strip('-')}-{digest}"


def _spoken(value: Any) -> tuple[str, bool]:
    """What stands for a value in a name, and whether no other value is written so."""
    if not isinstance(value, str):
        written = re.sub(r"[^A-Za-z0-9.+-]+", "+", str(value)).strip("+")
        return written, not isinstance(value, list | dict)
    exact = re.fullmatch(r"[A-Za-z0-9_. *-]+", value) is not None
    written = "".join(_SPOKEN.get(c, c) for c in value)
    return re.sub(r"[^A-Za-z0-9_.+@-]+", "-", written), exact

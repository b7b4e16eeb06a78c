"""Other names of the valid choices of a setting: what papers and other code call them."""

import difflib
import re
from collections.abc import Iterable, Mapping

#: In a table of other names: the field knows it, and there is no such choice here.
ABSENT = ""


def explained(name: str, valid: Iterable[str], others: Mapping[str, str], what: str) -> str:
    """Text that says which choice an unknown name means.

    Names are compared without case, hyphens and underscores. A name that is nearly a known one is
    taken for a misspelling of it: four fifths of its letters, so that of two names of the field
    that share their end, "linformer" and "transformer", neither is proposed for the other.

    Args:
      name: what a user wrote; not one of `valid`.
      valid: the choices.
      others: by other name, what to write instead, "'gdn'" or "'attention' with window=...", or
        `ABSENT`.
      what: what the choices are, "mixer".
    """
    valid = sorted(valid)
    known = {_plain(other): meaning for other, meaning in others.items()}
    known |= {_plain(choice): repr(choice) for choice in valid}
    listed = f"valid are: {', '.join(valid)}" if valid else "none is defined"
    key = _plain(name)
    near = [key] if key in known else difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    meaning = known[near[0]] if near else None
    if meaning is None:
        return listed
    if meaning == ABSENT:
        return f"there is no such {what}; {listed}"
    return f"did you mean {meaning}?"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

"""Which valid choice an unknown name means: a misspelling, or what papers and other code call it."""

import difflib
import re
from collections.abc import Iterable, Mapping

#: In a table of other names: the field knows it, and there is no such choice here.
ABSENT = ""

# Words that people add to the name of a choice: "kda_attention", "mamba2_mixer".
_ENDINGS = ("attention", "attn", "mixer", "layer", "block")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Text that suggests the nearest of the valid names, or lists all.

    The nearest is the `closest`, or else the only name of several words that has `name` as its first
    or last ones: `warmup` of `warmup_steps`, `dim` of `head_dim`.
    """
    valid = sorted(valid)
    meant = closest(str(name), {_plain(choice): choice for choice in valid})
    longer = [full for full in valid if full.startswith(f"{name}_") or full.endswith(f"_{name}")]
    if meant is None and len(longer) == 1:
        meant = longer[0]
    return _listed(valid) if meant is None else f"did you mean {meant!r}?"


def closest(name: str, known: Mapping[str, str]) -> str | None:
    """What the known name means that `name` is, or is a misspelling of.

    Names are compared without case, hyphens and underscores. A misspelling has four fifths of the
    letters in their order, so that of two names of the field that share their end, "linformer" and
    "transformer", neither is proposed for the other. Or it has the same letters in another order:
    "muno" has only three quarters of "muon" in its order. No number is a misspelling of another.

    Args:
      known: meanings by name, as `_plain` leaves it.
    """
    key = _plain(name)
    if not key or key.isdigit():
        return None
    near = [key] if key in known else difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    near = near or [other for other in known if sorted(other) == sorted(key)]
    return known[near[0]] if near else None


def explained(name: str, valid: Iterable[str], others: Mapping[str, str], what: str) -> str:
    """Text that says which choice an unknown name means, by the rule of `closest`.

    Of names with "attention", "mixer" or the like at their ends only what stands before is compared:
    "kda_attention" means "kda", and is a misspelling neither of "attention" nor of "self_attention".

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
    key = _plain(name)
    if key not in known and _before_ending(key) != key:
        name = _before_ending(key)
        known = {_before_ending(other): known[other] for other in sorted(known)[::-1]}
    meaning = closest(name, known)
    if meaning is None:
        return _listed(valid)
    if meaning == ABSENT:
        return f"there is no such {what}; {_listed(valid)}"
    return f"did you mean {meaning}?"


def _before_ending(key: str) -> str:
    """What stands before the ending, whichever it is; all of a name that is nothing else."""
    ending = next((word for word in _ENDINGS if key.endswith(word) and key != word), "")
    return key.removesuffix(ending)


def _listed(valid: list[str]) -> str:
    return f"valid are: {', '.join(valid)}" if valid else "none is defined"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

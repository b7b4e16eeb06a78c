"""Registries: objects by name, in order, and the sentence for a name that is not there."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from hybridlm.errors import UserError
from hybridlm.settings.names import nearest


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


def by_name[T: Named](entries: Iterable[T]) -> dict[str, T]:
    """The entries by their names, in order.

    Raises:
      ValueError: where two have one name.
    """
    found: dict[str, T] = {}
    for entry in entries:
        if entry.name in found:
            raise ValueError(f"{entry.name!r} is registered twice")
        found[entry.name] = entry
    return found


def choose[T](known: Mapping[str, T], names: Iterable[str], option: str) -> list[T]:
    """The entries of these names, in the order of the names.

    Raises:
      UserError: for an unknown name, with the nearest.
    """
    names = list(names)
    for name in names:
        if name not in known:
            raise UserError(f"--{option} {name!r} is unknown: {nearest(name, known)}")
    return [known[name] for name in names]

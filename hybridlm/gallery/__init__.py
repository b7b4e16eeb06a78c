"""Fact sheets of published models, computed from their configs in `configs/gallery`."""

from hybridlm.gallery.catalogue import Entry, load, names
from hybridlm.gallery.facts import Facts
from hybridlm.gallery.sheet import AtLength, LayerKind, Sheet, sheet

__all__ = ["AtLength", "Entry", "Facts", "LayerKind", "Sheet", "load", "names", "sheet"]

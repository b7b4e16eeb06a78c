"""The sheets of the gallery, each computed once a process."""

import functools
import pathlib

from hybridlm import gallery
from hybridlm.gallery.diagram import diagram

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def sheet_of(name: str) -> gallery.Sheet:
    """The sheet of a model of `configs/gallery`."""
    return gallery.sheet(gallery.load(name, ROOT / "configs" / "gallery"))


@functools.cache
def diagram_of(name: str) -> str:
    """The diagram of a model of `configs/gallery`."""
    return diagram(sheet_of(name))

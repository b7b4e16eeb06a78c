"""`hybridlm gallery`."""

import pathlib
from typing import Literal

from hybridlm.commands.command import Command
from hybridlm.settings.bounds import settings


@settings
class GallerySettings:
    """What to show.

    Attributes:
      action: list prints a line a published model; show prints the fact sheet of one.
      name: the model, as list names it.
      diagram: file that show writes the model's block diagram to, as SVG.
      configs: folder of the recipes; configs/gallery by default.
    """

    action: Literal["list", "show"]
    name: str | None = None
    diagram: pathlib.Path | None = None
    configs: pathlib.Path | None = None


def _run(settings: GallerySettings) -> int:
    return {"list": _list, "show": _show}[settings.action](settings)


def _list(settings: GallerySettings) -> int:
    from hybridlm.errors import UserError
    from hybridlm.gallery import text
    from hybridlm.progress import doing

    if settings.name is not None:
        raise UserError(f"gallery list takes no name: for one model, gallery show {settings.name}")
    if settings.diagram is not None:
        raise UserError("--diagram is of gallery show NAME, not of gallery list")
    with doing("counting the models of the gallery"):
        print(text.list_(_sheets(settings)))
    return 0


def _show(settings: GallerySettings) -> int:
    from hybridlm import gallery
    from hybridlm.errors import UserError
    from hybridlm.gallery import text

    if settings.name is None:
        raise UserError("gallery show needs a model's name: see hybridlm gallery list")
    sheet = gallery.sheet(gallery.load(settings.name, settings.configs))
    if settings.diagram is not None:
        _write_diagram(sheet, settings.diagram)
    print(text.show(sheet))
    return 0


def _write_diagram(sheet, file: pathlib.Path) -> None:
    from hybridlm.errors import UserError
    from hybridlm.gallery.diagram import diagram
    from hybridlm.storage.paths import open_path
    from hybridlm.storage.writing import write_text

    if file.suffix != ".svg":
        raise UserError(f"--diagram {file}: a diagram is an SVG file, so the name must end in .svg")
    write_text(open_path(file), diagram(sheet))


def _sheets(settings: GallerySettings) -> list:
    from hybridlm import gallery

    where = settings.configs
    return [gallery.sheet(gallery.load(name, where)) for name in gallery.names(where)]


GALLERY = Command(
    "gallery",
    "show published models: parameters, layers, caches and FLOPs, from their configs",
    lambda: (GallerySettings,),
    _run,
    positional=("action", "name"),
)

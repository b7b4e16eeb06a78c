"""`hybridlm gallery`."""

import pathlib
from typing import Literal

from hybridlm.commands.command import Command
from hybridlm.settings.bounds import settings


@settings
class GallerySettings:
    """What to show.

    Attributes:
      action: list prints a line a published model; show prints the fact sheet of one; page writes a
        page of all models with their sheets, drawings and differences.
      name: the model, as list names it.
      diagram: file that show writes the model's block diagram to, as SVG.
      out: file that page writes, HTML that needs no network; gallery.html by default.
      configs: folder of the recipes; configs/gallery by default.
    """

    action: Literal["list", "show", "page"]
    name: str | None = None
    diagram: pathlib.Path | None = None
    out: pathlib.Path | None = None
    configs: pathlib.Path | None = None


def _run(settings: GallerySettings) -> int:
    _check(settings)
    return {"list": _list, "show": _show, "page": _page}[settings.action](settings)


def _check(settings: GallerySettings) -> None:
    """Refuses what the action does not take."""
    from hybridlm.errors import UserError

    action, name, diagram = settings.action, settings.name, settings.diagram
    if action == "show" and name is None:
        raise UserError("gallery show needs a model's name: see hybridlm gallery list")
    if action != "show" and name is not None:
        raise UserError(f"gallery {action} takes no name: for one model, gallery show {name}")
    if action != "show" and diagram is not None:
        raise UserError(f"--diagram is of gallery show NAME, not of gallery {action}")
    if action != "page" and settings.out is not None:
        raise UserError(f"--out is of gallery page, not of gallery {action}")
    if diagram is not None and diagram.suffix != ".svg":
        raise UserError(
            f"--diagram {diagram}: a diagram is an SVG file, so the name must end in .svg"
        )


def _list(settings: GallerySettings) -> int:
    from hybridlm.gallery import text

    print(text.list_(_sheets(settings)))
    return 0


def _show(settings: GallerySettings) -> int:
    from hybridlm import gallery
    from hybridlm.gallery import text
    from hybridlm.gallery.diagram import diagram
    from hybridlm.progress import doing

    with doing(f"counting {settings.name}"):
        sheet = gallery.sheet(gallery.load(settings.name, settings.configs))
    if settings.diagram is not None:
        _write(settings.diagram, diagram(sheet))
    print(text.show(sheet))
    return 0


def _page(settings: GallerySettings) -> int:
    from hybridlm.gallery.page import page
    from hybridlm.progress import doing

    file, sheets = settings.out or pathlib.Path("gallery.html"), _sheets(settings)
    with doing(f"drawing the page {file}"):
        _write(file, page(sheets))
    print(file)
    return 0


def _write(file: pathlib.Path, content: str) -> None:
    from hybridlm.storage.paths import open_path
    from hybridlm.storage.writing import write_text

    write_text(open_path(file), content)


def _sheets(settings: GallerySettings) -> list:
    from hybridlm import gallery
    from hybridlm.progress import doing

    where = settings.configs
    with doing("counting the models of the gallery"):
        return [gallery.sheet(gallery.load(name, where)) for name in gallery.names(where)]


GALLERY = Command(
    "gallery",
    "show published models: parameters, layers, caches and FLOPs, from their configs",
    lambda: (GallerySettings,),
    _run,
    positional=("action", "name"),
)

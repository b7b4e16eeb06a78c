"""The published models: one recipe a file in `configs/gallery`."""

import os
import pathlib
import re
from typing import NamedTuple

from hybridlm import config as configs
from hybridlm.errors import ConfigError, UserError
from hybridlm.gallery.facts import Facts
from hybridlm.models.settings import ModelConfig
from hybridlm.settings.names import nearest
from hybridlm.settings.reader import read_dataclass

FOLDER = pathlib.Path("configs") / "gallery"
_FACTS = re.compile(r"^FACTS = ", re.MULTILINE)


class Entry(NamedTuple):
    """A published model.

    Attributes:
      name: of its file, without ".py".
      config: its settings at the published size.
    """

    name: str
    facts: Facts
    config: ModelConfig


def folder() -> pathlib.Path:
    """`configs/gallery` of the working directory, or else of the checkout this package is in.

    Raises:
      UserError: if there is neither.
    """
    checkout = pathlib.Path(__file__).parents[2]
    for root in (pathlib.Path(), checkout):
        if (root / FOLDER).is_dir():
            return root / FOLDER
    raise UserError(
        f"the models of the gallery are recipes in {FOLDER} of a clone of the repository, and there"
        " is none here: change to the clone's folder, or name the recipes' folder with --configs"
    )


def names(where: os.PathLike[str] | str | None = None) -> list[str]:
    """The names of the models in folder `where` (`folder()` by default), in order.

    Raises:
      UserError: if the folder has no recipe with FACTS.
    """
    path = folder() if where is None else pathlib.Path(where)
    found = [f.stem for f in sorted(path.glob("*.py")) if _FACTS.search(f.read_text("utf-8"))]
    if not found:
        raise UserError(f"{path} has no recipe that defines FACTS: see configs/gallery")
    return found


def load(name: str, where: os.PathLike[str] | str | None = None) -> Entry:
    """The model of file NAME.py.

    Raises:
      UserError: if there is no such model. ConfigError: if its recipe or its FACTS are not valid.
    """
    path = folder() if where is None else pathlib.Path(where)
    file = path / f"{name}.py"
    known = names(path)
    if name not in known:
        raise UserError(f"no model of the gallery is named {name!r}: {nearest(name, known)}")
    try:
        facts = read_dataclass(Facts, configs.recipe_module(file).FACTS, "FACTS")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return Entry(name, facts, configs.load(str(file)).model)

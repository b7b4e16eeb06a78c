"""Runs a recipe's Python file, which may import files of its folder and of the folder above."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import types
from collections.abc import Iterator, Mapping

from hybridlm.errors import ConfigError
from hybridlm.settings.names import nearest


def recipe_module(path: os.PathLike[str] | str) -> types.ModuleType:
    """The module of recipe file `path`, for definitions other than `get_config`.

    Raises:
      ConfigError: if the file is missing or cannot be run.
    """
    with imported(_existing(pathlib.Path(path))) as module:
        return module


def split(spec: str) -> tuple[pathlib.Path, str]:
    """(file, argument) of "file.py" or "file.py:argument"; raises if the file is missing."""
    path, _, arg = spec.partition(".py:")
    return _existing(pathlib.Path(path + ".py" if arg or spec.endswith(".py:") else spec)), arg


@contextlib.contextmanager
def imported(path: pathlib.Path) -> Iterator[types.ModuleType]:
    """Runs recipe file `path`; its helpers can be imported inside the `with` block.

    Helpers are the Python files in the recipe's folder and in the folder above; the recipe's folder
    is searched first. At the end of the block, the recipe and its helpers are removed from
    `sys.modules`, so that helpers of the same name in two folders do not mix. `sys.path` is never
    changed.

    Raises:
      ConfigError: if the file cannot be run.
    """
    if path.suffix != ".py":
        raise ConfigError(
            f"--config names {path}, which is no Python file: its name must end in .py"
        )
    name = f"hybridlm_recipe_{path.stem}"
    with _importable({name: path, **_helpers(path.resolve())}):
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look up their module there
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{path} cannot be run: {one_line(error)}") from error
        yield module


def one_line(error: BaseException) -> str:
    """The type and message of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules by name in `files`."""

    def __init__(self, files: Mapping[str, pathlib.Path]):
        self.files = files

    def find_spec(self, fullname, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        file = self.files.get(fullname)
        return None if file is None else importlib.util.spec_from_file_location(fullname, file)


@contextlib.contextmanager
def _importable(files: Mapping[str, pathlib.Path]) -> Iterator[None]:
    """Inside the block, the names in `files` import these files; afterwards the old modules return.

    If one recipe loads another, the inner recipe does not see the helpers of the outer one.
    """
    outer = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
    hidden = {*files, *(name for finder in outer for name in finder.files)}
    kept = {name: sys.modules.pop(name) for name in hidden if name in sys.modules}
    finder = _Finder(files)
    sys.meta_path[:] = [finder, *(f for f in sys.meta_path if f not in outer)]
    try:
        yield
    finally:
        sys.meta_path[:] = [*outer, *(f for f in sys.meta_path if f is not finder)]
        for name in hidden:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def _helpers(recipe: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files that `recipe` may import, by name.

    They do not replace the standard library or packages that are already imported, because other
    code, such as jax, may import these inside the block.
    """
    folders = (recipe.parent.parent, recipe.parent)  # the later one wins
    files = {file.stem: file for folder in folders for file in folder.glob("*.py")}
    return {
        name: file
        for name, file in files.items()
        if name not in sys.stdlib_module_names
        and name != "__main__"
        and not hasattr(sys.modules.get(name), "__path__")
    }


def _existing(path: pathlib.Path) -> pathlib.Path:
    if not path.is_file():
        raise ConfigError(f"--config names {path}, which is not a file{_nearby(path)}")
    return path


def _nearby(path: pathlib.Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    recipes = [p.name for p in folder.glob("*.py")]
    return f"; {nearest(path.name, recipes)}" if recipes else ""

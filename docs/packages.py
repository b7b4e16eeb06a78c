"""The packages and what they import, read from the code: `python docs/packages.py` updates design.md.

Arrows run downward only; `tests/test_imports.py` holds the code to `FLOORS`.
"""

import ast
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- packages: written by docs/packages.py -->", "<!-- packages: end -->"

#: Top to bottom. A package may import those of lower floors, and none of its own floor.
FLOORS: list[dict[str, str]] = [
    {"experiments": "a folder a claim: protocol, run, figures, result"},
    {"launch": "runs on SLURM, TPU pods, clouds, this machine"},
    {"hybridlm.commands": "a file a command; options from the settings it runs"},
    {
        "hybridlm.analysis": "what a notebook imports: records, tables, figures, reports",
        "hybridlm.gallery": "published models: fact sheets computed from their configs",
    },
    {
        "hybridlm.aot": "a step compiled for chips that are not attached",
        "hybridlm.sweep": "many runs of one config, counted and named",
    },
    {"hybridlm.config": "loads recipe files, documents settings"},
    {"hybridlm.train": "the run's settings, optimizer, step, loop, live probes"},
    {"hybridlm.distill": "transformer to hybrid: transfer, distillation, choice of layers"},
    {"hybridlm.probes": "what happens inside a model; a registry of probes"},
    {
        "hybridlm.evals": "held-out loss, needle, RULER, MQAR, recall; a registry of tasks",
        "hybridlm.generation": "sampling, prefill and decoding of text",
    },
    {"hybridlm.runs": "the folder of a run: lock, metrics, checkpoints; open_model"},
    {"hybridlm.convert": "checkpoints of transformers and GGUF files, read and written"},
    {"hybridlm.data": "sources, tokenizers, shards, packing, mixtures, batches"},
    {"hybridlm.models": "stack, blocks, norms, mixers, feed-forwards, loss, accounting"},
    {"hybridlm.parallel": "mesh, logical axes, ops per shard, hosts"},
    {"hybridlm.settings": "frozen dataclasses from mappings: bounds, errors, descriptions"},
    {"hybridlm.storage": "paths of this machine, gs:// and s3://; leases; uploads"},
    {
        "hybridlm.errors": "errors that a user can mend, and exit codes",
        "hybridlm.progress": "says what takes longer than two seconds",
        "hybridlm.pages": "HTML pages that are one file: shell, colours, script",
    },
    {"kernels_pallas": "ops: reference, chunked, TPU, Hopper; laws; scorecard"},
]
MEANINGS = {package: text for floor in FLOORS for package, text in floor.items()}
FLOOR = {package: number for number, floor in enumerate(FLOORS) for package in floor}


class Import(NamedTuple):
    """One import of one of our modules by another.

    Attributes:
      path: the file, from the top of the checkout.
      module: the module imported, "hybridlm.models.stack".
      top: whether it stands at the top of the file, and not inside a function.
    """

    path: pathlib.Path
    line: int
    module: str
    top: bool


def package(module: str) -> str | None:
    """The package of `FLOORS` that a module belongs to."""
    return next((p for p in FLOOR if f"{module}.".startswith(f"{p}.")), None)


def files(name: str) -> list[pathlib.Path]:
    """The Python files of a package."""
    folder = ROOT / name.replace(".", "/")
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def module_of(path: pathlib.Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: pathlib.Path) -> Iterator[Import]:
    """What a file imports of our packages."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _is_module(name) else node.module for name in inner]
        else:
            continue
        for name in dict.fromkeys(names):
            if package(name) is not None:
                yield Import(path.relative_to(ROOT), node.lineno, name, node in tree.body)


def graph() -> dict[str, set[str]]:
    """The packages that each package imports."""
    found: dict[str, set[str]] = {}
    for name in FLOOR:
        others = (package(i.module) for path in files(name) for i in imports(path) if i.top)
        found[name] = {other for other in others if other not in (None, name)}
    return found


def picture() -> str:
    """The packages as a Mermaid diagram; arrows that longer ways imply are left out."""
    edges = graph()
    above = {name: set() for name in edges}  # what a package reaches
    for name in sorted(edges, key=FLOOR.__getitem__, reverse=True):
        above[name] = edges[name] | {far for other in edges[name] for far in above[other]}
    lines = ["```mermaid", "graph TD"]
    for name, text in MEANINGS.items():
        lines.append(f'  {_node(name)}["<b>{name.removeprefix("hybridlm.")}</b><br>{text}"]')
    for name in edges:
        direct = edges[name] - {far for other in edges[name] for far in above[other]}
        lines += [f"  {_node(name)} --> {_node(other)}" for other in sorted(direct)]
    return "\n".join([*lines, "```"])


def with_picture(page: str) -> str:
    """The page with the picture of today between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture()}\n{END}{after}"


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _node(name: str) -> str:
    return name.replace(".", "_")


if __name__ == "__main__":
    PAGE.write_text(with_picture(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

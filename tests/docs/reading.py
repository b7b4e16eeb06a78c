"""Reads the code blocks of a page and runs them in order, in one process and one folder, as a reader would.

A ```python block runs with the names of the blocks before it. Its output is compared with a block without a
language that follows at once. A block after "save this as `NAME`" is written to that file instead. A block that
changes a config `c` must leave one that reads.

In a ```sh block run `hybridlm`, `python -m MODULE` and `python FILE`. A line `# hybridlm: ...` below a command is
the mistake that it must report; other comments below a script are how its output begins. Of `make TARGET` the
target must exist. Anything else cannot be run, and neither can a block whose first line is

    # not run by the tests: REASON
"""

import contextlib
import pathlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from ml_collections import ConfigDict

from hybridlm import cli, config

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = (".", "docs", "docs/concepts", "docs/reference", "benchmarks", "data/*", "experiments/*")
FOLDERS = (*FOLDERS, "experiments/*/data", "notebooks", "tests/oracles")
MARK = "# not run by the tests: "
SAVED = re.compile(r"[Ss]ave this as `([\w./]+)`:\s*$")


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
      line: of its first line of code, from 1.
      language: "python", "sh" or "".
      file: where the page tells its reader to save it, or None.
      printed: what the page shows as its output, or None.
    """

    line: int
    language: str
    text: str
    file: str | None
    printed: str | None

    @property
    def reason(self) -> str | None:
        """Why the block is not run, if it says so."""
        first = self.text.partition("\n")[0]
        return first.removeprefix(MARK).strip() if first.startswith(MARK) else None

    @property
    def commands(self) -> "list[Line]":
        """The commands of a shell block."""
        found: list[Line] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.startswith("# ") and found:
                found[-1].below.append(line.removeprefix("# "))
            elif words := shlex.split(line, comments=True):
                found.append(Line(words, []))
        return found


class Line(NamedTuple):
    """A command of a shell block.

    Attributes:
      words: of the command, without a comment.
      below: the lines of comment directly below it.
    """

    words: list[str]
    below: list[str]


def pages(root: pathlib.Path) -> list[str]:
    """Every page of the documentation, as a path in the checkout."""
    found = {path for folder in FOLDERS for path in root.glob(f"{folder}/*.md")}
    return sorted(path.relative_to(root).as_posix() for path in found)


def blocks(page: str) -> list[Block]:
    """The blocks in Python and shell of a page."""
    found, matches = [], list(FENCE.finditer(page))
    for match, after in zip(matches, [*matches[1:], None]):
        language, text = match.groups()
        if language not in ("python", "sh"):
            continue
        saved = SAVED.search(page[: match.start()])
        directly = after is not None and page[match.end() : after.start()].strip() == ""
        printed = after[2] if directly and not after[1] else None
        line = page.count("\n", 0, match.start()) + 2
        found.append(Block(line, language, text, saved and saved[1], printed))
    return found


class Reader:
    """Runs the blocks of pages in the current folder.

    Attributes:
      names: of the Python blocks; a page may assume some.
      change: makes a command smaller, or returns None to leave it out.
      said: the output of every command.
      silent: "PAGE:LINE" of every block of Python that printed nothing.
      not_run: "PAGE:LINE: WHAT" for everything that cannot be run and does not say so.
    """

    def __init__(
        self,
        root: pathlib.Path,
        output: Callable[[], tuple[str, str]],
        names: dict[str, Any] | None = None,
        change: Callable[[list[str]], list[str] | None] = lambda words: words,
    ):
        self.root, self.output, self.change = root, output, change
        self.names: dict[str, Any] = dict(names or {})
        self.said: list[str] = []
        self.silent: list[str] = []
        self.not_run: list[str] = []
        self._targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.M))

    def read(self, name: str) -> None:
        """Runs the page `name`, a path in the checkout."""
        for block in blocks((self.root / name).read_text(encoding="utf-8")):
            place = f"{name}:{block.line}"
            if block.reason is not None:
                assert block.reason, f"{place}: the mark gives no reason"
            elif block.file is not None:
                pathlib.Path(block.file).write_text(block.text)
            elif block.language == "python":
                self._python(block, place)
            else:
                for line in block.commands:
                    self._command(line, place)

    def _python(self, block: Block, place: str) -> None:
        changes = re.search(r"^c\.", block.text, re.MULTILINE) is not None
        if changes:
            self.names["c"] = self._config()
        exec(compile(block.text, place, "exec"), self.names)
        out, _ = self.output()
        assert block.printed in (None, out), f"{place} prints\n{out}"
        if not out.strip():
            self.silent.append(place)
        if changes:
            config.read(self.names["c"].to_dict())

    def _config(self) -> ConfigDict:
        """The config that a page changes a part of: the demo's."""
        folder = str(self.root / "configs")
        with mock.patch.object(sys, "path", [folder, *sys.path]):
            return runpy.run_path(f"{folder}/demo.py")["get_config"]()

    def _command(self, line: Line, place: str) -> None:
        words = self.change(line.words)
        if words is None:
            return
        program, rest = pathlib.Path(words[0]).name, words[1:]
        what = f"{place}: {shlex.join(words)}"
        if program == "make":
            assert set(rest) <= self._targets, what
        elif program == "hybridlm":
            self._hybridlm(rest, line.below, what)
        elif program == "python":
            self._script(rest, line.below, what)
        else:
            self.not_run.append(what)

    def _hybridlm(self, words: list[str], below: list[str], what: str) -> None:
        code = cli.main(words)
        out, err = self.output()
        self.said.append(out)
        mistake = next((text for text in below if text.startswith("hybridlm: ")), None)
        if mistake is not None:
            assert (code, err.splitlines()[-1:]) == (2, [mistake]), f"{what}\n{err}"
        else:
            assert code == 0, f"{what}\n{err}"
            assert out.strip(), f"{what} says nothing"

    def _script(self, words: list[str], below: list[str], what: str) -> None:
        with _arguments(words):
            try:
                if words[0] == "-m":
                    runpy.run_module(words[1], run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(words[0], run_name="__main__")
            except SystemExit as end:
                assert not end.code, f"{what}: exit code {end.code}"
        out, _ = self.output()
        self.said.append(out)
        assert out.splitlines()[: len(below)] == below, f"{what} prints\n{out}"


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    argv = words[1:] if words[0] == "-m" else words
    with mock.patch.object(sys, "argv", argv), mock.patch.object(sys, "path", [".", *sys.path]):
        yield

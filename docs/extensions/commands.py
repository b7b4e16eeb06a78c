"""The help of every command, as the command prints it."""

import contextlib
import io
import os
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from hybridlm.commands.main import COMMANDS, main

COLUMNS = "88"


def help_of(name: str) -> str:
    """What `hybridlm NAME --help` prints."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=COLUMNS),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([*name.split(), "--help"])
    return printed.getvalue()


class Commands(Directive):
    def run(self) -> list[nodes.Node]:
        found = []
        for name, command in COMMANDS.items():
            section = nodes.section(ids=[nodes.make_id(name)])
            section += nodes.title(text=f"hybridlm {name}")
            section += nodes.paragraph(text=f"{command.help[0].upper()}{command.help[1:]}.")
            text = help_of(name)
            section += nodes.literal_block(text, text, language="text")
            found.append(section)
        return found


def setup(app: Sphinx) -> dict:
    app.add_directive("commands", Commands)
    return dict(parallel_read_safe=True, parallel_write_safe=True)

"""The command line: finds the named command and runs it."""

import importlib
import io
import logging
import sys
from collections.abc import Sequence

from hybridlm import __version__
from hybridlm.commands import options
from hybridlm.commands.average import AVERAGE
from hybridlm.commands.branch import BRANCH
from hybridlm.commands.compile import COMPILE
from hybridlm.commands.convert import CONVERT
from hybridlm.commands.distill import DISTILL_HYPE, DISTILL_TRANSFER
from hybridlm.commands.distill_select import DISTILL_SELECT
from hybridlm.commands.eval import EVAL
from hybridlm.commands.gallery import GALLERY
from hybridlm.commands.generate import GENERATE
from hybridlm.commands.inspect import INSPECT
from hybridlm.commands.probe import PROBE
from hybridlm.commands.report import REPORT
from hybridlm.commands.sweep import SWEEP
from hybridlm.commands.tokenize import TOKENIZE
from hybridlm.commands.train import TRAIN
from hybridlm.commands.train_tokenizer import TRAIN_TOKENIZER
from hybridlm.errors import UserError, exit_code
from hybridlm.progress import doing
from hybridlm.settings.names import nearest
from hybridlm.settings.registry import by_name

COMMANDS = by_name(
    [
        TRAIN,
        BRANCH,
        COMPILE,
        SWEEP,
        GENERATE,
        EVAL,
        PROBE,
        INSPECT,
        AVERAGE,
        CONVERT,
        DISTILL_TRANSFER,
        DISTILL_SELECT,
        DISTILL_HYPE,
        GALLERY,
        REPORT,
        TOKENIZE,
        TRAIN_TOKENIZER,
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (2 for a user's mistake, with a one-line message)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # If arrays cannot be read or written, Orbax and its event loop log a traceback for each; the error
    # is printed below.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a sample may contain characters that the encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return exit_code("hybridlm", lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    if not argv:
        _parser().print_help()
        return UserError.exit_code
    name, *words = argv
    if name.startswith("-"):
        _parser().parse_known_args(argv)  # --help and --version end here
        raise UserError(f"unknown argument {name!r}: see `hybridlm --help`")
    if words and f"{name} {words[0]}" in COMMANDS:  # a command of two words
        name, words = f"{name} {words[0]}", words[1:]
    longer = [known for known in COMMANDS if known.startswith(f"{name} ")]
    if longer:
        raise UserError(f"{name} is the beginning of a command: write {' or '.join(longer)}")
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: {nearest(name, COMMANDS)}")
    command = COMMANDS[name]
    with doing("loading jax and hybridlm"):
        settings, overrides = options.parse(command, words)
        importlib.import_module(command.loads)
    return command.run(*settings, *([overrides] if command.takes_overrides else []))


def _parser() -> options.Parser:
    """The parser of the arguments before a command."""
    parser = options.Parser(
        "hybridlm",
        lambda: "Options of a command: hybridlm COMMAND --help",
        description="Trains hybrid language models, evaluates them and measures inside them.",
    )
    parser.add_argument("--version", action="version", version=f"hybridlm {__version__}")
    listed = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS.values():
        listed.add_parser(command.name, help=command.help, prog=f"hybridlm {command.name}")
    return parser

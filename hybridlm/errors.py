"""Errors that a user can mend: the CLI prints their one sentence and exits with code 2."""

import sys
from collections.abc import Callable

TRY_AGAIN = 75  # exit code of a run that stopped and can go on; launchers start it again


class UserError(Exception):
    """Something the user gave was wrong; the message says what, where, and what would be right."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence, as the command line does, and no traceback."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError):
    """A config that cannot be run; the message begins with the offending key."""


class DataError(UserError):
    """A source, shard or tokenizer that cannot be read as it stands."""


class RunError(UserError):
    """A workdir or checkpoint that does not hold what was asked for."""


class ConvertError(UserError):
    """A checkpoint of another library that cannot be read, or a model that it cannot hold."""


class StorageError(UserError):
    """A request to a storage server that failed, or was not answered."""

    exit_code = TRY_AGAIN


class WriteError(UserError):
    """A file that cannot be written, for example because the disk is full; it names the path."""


def exit_code(program: str, main: Callable[[], int]) -> int:
    """Runs the `main` of a script; prints a UserError as one sentence and returns its exit code."""
    try:
        return main()
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code

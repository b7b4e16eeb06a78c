"""Errors that a user can mend: the CLI prints their one sentence and exits with code 2."""

import errno
import os
import select
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


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def exit_code(program: str, main: Callable[[], int]) -> int:
    """Runs the `main` of a program and returns the exit code; what a user can mend is one sentence.

    A UserError gives its own exit code, an interrupt 130, a file that cannot be read or written and
    output that does not fit on the disk 2. If nobody reads the output any longer, as with `| head`,
    the program ends with code 1 and says nothing.
    """
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()  # here: what fails at Python's exit cannot be caught
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _output_is_closed():  # another pipe is broken, as that to a worker
            raise
        _drop_output()
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        if error.filename is None:  # files have names: only the output has none
            _drop_output()
        what = error.filename or f"the output of {program} cannot be written"
        print(f"{program}: {what}: {error.strerror}", file=sys.stderr)
        return UserError.exit_code


def _output_is_closed() -> bool:
    """Whether stdout is a pipe or a terminal that nobody reads any longer."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def _drop_output() -> None:
    """Sends what is still buffered for stdout nowhere: Python would report it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""What ends a program: the command line and the scripts of experiments/ and benchmarks/ alike."""

import os
import subprocess
import sys
import textwrap

import pytest

from hybridlm import errors


def ended(root, words, stdout=subprocess.PIPE):
    """Exit code, stdout (None if it goes elsewhere) and stderr of Python with these words."""
    done = subprocess.run(
        [sys.executable, *words], cwd=root, stdout=stdout, stderr=subprocess.PIPE, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def closed():
    """A pipe that nobody reads any longer."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def script(body: str) -> list[str]:
    """A program whose `main` has this body."""
    main = "def main():\n" + textwrap.indent(textwrap.dedent(body), "    ")
    imports = "import os, sys\nfrom hybridlm import errors\n"
    return ["-c", f"{imports}{main}\nsys.exit(errors.exit_code('script', main))"]


LONG = "for _ in range(20_000): print('line')\nreturn 0"  # more than is buffered
SHORT = "print('line')\nreturn 0"
HELP = "print('line')\nraise SystemExit(0)"


@pytest.mark.parametrize("body", [LONG, SHORT, HELP], ids=["long", "short", "help"])
def test_a_script_whose_output_nobody_reads_ends_without_a_word(root, closed, body):
    assert ended(root, script(body), closed) == (1, None, "")


@pytest.mark.parametrize("body", [LONG, SHORT, HELP], ids=["long", "short", "help"])
def test_a_full_disk_behind_the_output_is_one_sentence(root, body):
    said = "script: the output of script cannot be written: No space left on device\n"
    with open("/dev/full", "w") as full:
        assert ended(root, script(body), full) == (2, None, said)


def test_a_script_of_an_experiment_whose_output_nobody_reads_ends_without_a_word(root, closed):
    run = "-m experiments.large_window_laziness.run --workdir runs/x --sets recurrent --list"
    code, _, err = ended(root, run.split(), closed)
    assert code == 1 and not [line for line in err.splitlines() if not line.startswith("loading ")]


def test_another_broken_pipe_is_a_bug_and_shown(root):
    """As that to a worker that died."""
    code, _, err = ended(
        root, script("read, write = os.pipe()\nos.close(read)\nos.write(write, b'x')")
    )
    assert code == 1 and err.startswith("Traceback") and "BrokenPipeError" in err


def test_a_file_that_is_not_there_is_named(root):
    code, out, err = ended(root, script("print('before')\nopen('nowhere/at/all')"))
    assert (code, out) == (2, "before\n")
    assert err == "script: nowhere/at/all: No such file or directory\n"


def test_an_interrupt_is_one_word(root):
    # A shell's job in the background, and so its tests, ignore this signal.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    body = f"{heard}signal.raise_signal(signal.SIGINT)\nreturn 1"
    assert ended(root, script(body)) == (130, "", "script: interrupted\n")


@pytest.mark.parametrize("kind", [errors.UserError, errors.StorageError])
def test_a_mistake_has_the_exit_code_of_its_kind(capsys, kind):
    def main():
        print("before")
        raise kind("no such thing")

    assert errors.exit_code("script", main) == kind.exit_code
    assert capsys.readouterr() == ("before\n", "script: no such thing\n")

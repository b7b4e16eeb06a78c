"""Every command has described options, and the command line imports no large package."""

import dataclasses
import subprocess
import sys

import pytest

from hybridlm.commands.main import COMMANDS
from hybridlm.settings.describe import summary_and_meanings


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_every_option_is_described_and_unique(command):
    names = []
    for cls in command.settings():
        meanings = summary_and_meanings(cls)[1]
        names += [field.name for field in dataclasses.fields(cls)]
        assert {field.name for field in dataclasses.fields(cls)} <= set(meanings), cls
    assert len(set(names)) == len(names)


def test_settings_dataclasses_have_different_names():
    classes = {cls for command in COMMANDS.values() for cls in command.settings()}
    assert len({cls.__name__ for cls in classes}) == len(classes)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_prints_help(name, command, capsys):
    with pytest.raises(SystemExit) as end:
        command(name, "--help")
    assert end.value.code == 0 and f"usage: hybridlm {name}" in capsys.readouterr().out


def test_the_command_line_imports_no_large_package(root):
    """Nor does a command with a wrong option, except probe, whose settings import jax."""
    light = [name for name in COMMANDS if name != "probe"]
    code = f"""
import sys
from hybridlm.cli import main
main([])
assert all(main([name]) == 2 for name in {light})
large = {{"jax", "numpy", "matplotlib", "flax", "orbax", "launch"}} & set(sys.modules)
sys.exit(str(large) if large else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

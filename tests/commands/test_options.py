"""Options are generated from dataclasses: names, types, help, and one sentence for a mistake."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import pytest

from hybridlm.commands import options
from hybridlm.commands.command import Command
from hybridlm.errors import UserError
from hybridlm.settings.reader import require
from hybridlm.settings.text import TOKENS


@dataclasses.dataclass(frozen=True)
class First:
    """Something.

    Attributes:
      names: of `these`, 50% of them.
      size: how many.
    """

    names: tuple[str, ...]
    size: Annotated[int, "bound"] | None = None

    def __post_init__(self):
        require(self.size is None or self.size >= 1, "size", f"must be at least 1, not {self.size}")


@dataclasses.dataclass(frozen=True)
class Second:
    """Something else.

    Attributes:
      place: where.
      lengths: how long.
      from_: the first.
    """

    place: pathlib.Path
    lengths: tuple[int, ...] = dataclasses.field(default=(1,), metadata=TOKENS)
    share: float = 0.5
    loud: bool = False
    by: Literal["mass", "copy"] = "mass"
    step: int | Literal["all"] | None = None
    from_: int = 0


COMMAND = Command(
    "do", "do something", lambda: (First, Second), lambda *_: 0, positional=("place",)
)


def parse(*words, command=COMMAND):
    return options.parse(command, words)


def test_options_and_defaults_are_those_of_the_fields():
    assert parse("here", "--names", "a,b") == (
        [First(("a", "b")), Second(pathlib.Path("here"))],
        [],
    )
    words = "here --names=a --size 3 --lengths 1k,2,1M --share 1 --loud --by copy --step all"
    (first, second), _ = parse(*words.split())
    assert first == First(("a",), 3)
    lengths = (1024, 2, 1024**2)
    assert second == Second(pathlib.Path("here"), lengths, 1.0, True, "copy", "all")
    assert parse("here", "--names", "a", "--step", "7")[0][1].step == 7


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("here", "the following arguments are required: --names (see `hybridlm do --help`)"),
        ("--names a", "the following arguments are required: PLACE"),
        ("here a", "a has no option before it: write --names a (see `hybridlm do --help`)"),
        ("here --names a --size 0", "--size must be at least 1, not 0"),
        ("here --names a --size 1.5", "--size must be a whole number, not '1.5'"),
        ("here --names a --size 99999999999", "--size must be below 2^31"),
        ("here --names a --size 1k", "--size must be a whole number, not '1k'"),
        ("here --names a --lengths 1,,2", "--lengths must be whole numbers with commas between"),
        ("here --names a --lengths 1kk", "--lengths must be whole numbers"),
        ("here --names a --share much", "--share must be a number, not 'much'"),
        ("here --names a --share inf", "--share must be a finite number"),
        ("here --names a --by mas", "--by is 'mas': did you mean 'mass'?"),
        ("here --names a --step last", "--step must be a whole number or all, not 'last'"),
        ("here --names a --lenghts 1", "unknown argument '--lenghts': did you mean '--lengths'?"),
        ("here --nmaes a", "unknown argument '--nmaes': did you mean '--names'?"),
        ("here --names a --config.a=1", "unknown argument '--config.a=1'"),
        ("hdfs://a/b --names a", "PLACE: hdfs://a/b has the scheme hdfs://"),
        ("here --names a --from inside", "--from must be a whole number, not 'inside'"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_option(words, sentence):
    with pytest.raises(UserError) as error:
        parse(*words.split())
    assert sentence in str(error.value)
    assert "--place" not in str(error.value) and "--from_" not in str(error.value)


def test_an_empty_path_is_refused():
    with pytest.raises(UserError, match="a path is empty"):
        parse("", "--names", "a")


def test_commands_that_take_overrides_get_them_as_pairs():
    taking = dataclasses.replace(COMMAND, takes_overrides=True)
    words = ["here", "--config.a.b=1", "--names", "a", "--config.c", "x y"]
    assert parse(*words, command=taking)[1] == [("a.b", "1"), ("c", "x y")]
    with pytest.raises(UserError, match="--config.c has no value"):
        parse("here", "--names", "a", "--config.c", command=taking)


def test_of_a_value_given_twice_the_last_counts_and_is_said(capsys):
    taking = dataclasses.replace(COMMAND, takes_overrides=True)
    same = ["here", "--names", "a", "--names=a", "--config.a=1", "--config.a", "1"]
    assert parse(*same, command=taking)[1] == [("a", "1"), ("a", "1")]
    assert capsys.readouterr().err == ""
    read, overrides = parse(*same, "--names", "b,c", "--config.a=2", command=taking)
    assert read[0].names == ("b", "c") and dict(overrides) == {"a": "2"}
    assert capsys.readouterr().err == (
        "--names is given twice: 'b,c' counts, not 'a'\n"
        "--config.a is given twice: '2' counts, not '1'\n"
    )


def test_help_comes_from_the_docstrings(capsys):
    noted = dataclasses.replace(COMMAND, notes=lambda: "names:\n  a  first")
    with pytest.raises(SystemExit):
        parse("--help", command=noted)
    text = capsys.readouterr().out
    assert "usage: hybridlm do --names TEXT,... PLACE" in text
    for line in (
        "--names TEXT,...      of these, 50% of them\n",
        "--size N              how many\n",
        "--lengths TOKENS,...  how long (default: 1)\n",
        "--by mass|copy",
        "--step N|all",
        "names:\n  a  first\n",
    ):
        assert line in text, text

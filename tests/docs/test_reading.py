"""What `tests.docs.reading` must notice in a page."""

import pytest

from hybridlm.errors import UserError
from tests.docs.reading import Reader


@pytest.fixture
def read(tmp_path, root, monkeypatch, capsys):
    """Runs a page of this text; returns its reader."""
    monkeypatch.chdir(tmp_path)

    def run(text):
        page = tmp_path / "page.md"
        page.write_text(text)
        reader = Reader(root, capsys.readouterr)
        reader.read(page)
        return reader

    return run


def test_blocks_run_in_order_with_the_names_before(read):
    reader = read("```python\nx = 2\n```\n\ntext\n\n```python\nprint(x + 1)\n```\n\n```\n3\n```\n")
    assert reader.names["x"] == 2 and not reader.not_run


def test_a_block_to_be_saved_is_a_file(read, tmp_path):
    read("Save this as `a.py`:\n\n```python\nprint(7)\n```\n\n```sh\npython a.py\n# 7\n```\n")
    assert (tmp_path / "a.py").read_text() == "print(7)\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```python\nprint(1)\n```\n\n```\n2\n```\n", "prints"),
        ("```sh\nmake nothing-like-that\n```\n", "nothing-like-that"),
        ("```sh\nhybridlm gallery lists\n```\n", "gallery"),
        ("```sh\nhybridlm gallery lists\n# hybridlm: another sentence\n```\n", "gallery"),
        ("```sh\npython -c 'x'\n```\n", "."),
        ("```sh\n# not run by the tests: \ntrue\n```\n", "no reason"),
        ('```python\nc.model.pattern = "none-such"\n```\n', "none-such"),
    ],
)
def test_a_wrong_block_fails(read, text, said):
    with pytest.raises((AssertionError, OSError, UserError), match=said):
        read(text)


def test_what_cannot_run_is_listed(read):
    (found,) = read("# T\n\n```sh\nsrun hybridlm train\n```\n").not_run
    assert found.endswith("page.md:4: srun hybridlm train")


def test_a_marked_block_does_not_run(read):
    assert not read("```sh\n# not run by the tests: needs SLURM\nsrun true\n```\n").not_run


def test_a_block_that_prints_nothing_is_known(read):
    reader = read("```python\nx = 2\n```\n\ntext\n\n```python\nprint(x)\n```\n")
    (place,) = reader.silent
    assert place.endswith("page.md:2")

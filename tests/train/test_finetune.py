"""The examples of the recipe that fine-tunes the demo's model."""

import gzip
import importlib.util


def test_the_examples_are_those_of_their_script(root):
    path = root / "data" / "examples" / "make_capitals.py"
    spec = importlib.util.spec_from_file_location("make_capitals", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with gzip.open(path.with_name("capitals.jsonl.gz"), "rt", encoding="utf-8") as file:
        assert file.read().splitlines() == script.lines()
